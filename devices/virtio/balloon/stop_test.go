package balloon

import (
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// TestStopWhileTelling: when Stop has returned nobody speaks to the driver any
// more, for what is behind Driver.ConfigChanged may be gone.
func TestStopWhileTelling(t *testing.T) {
	m := virtiotest.NewMemory(t, 64<<20)
	d, err := New(Config{Mem: m.Guest})
	if err != nil {
		t.Fatal(err)
	}
	telling, told := make(chan struct{}), make(chan struct{})
	err = d.Start(virtio.Driver{Mem: m.Guest, Queues: make([]*virtio.Queue, queues), ConfigChanged: func() {
		close(telling)
		<-told
	}})
	if err != nil {
		t.Fatal(err)
	}
	set, stopped := make(chan error), make(chan struct{})
	go func() { set <- d.SetTarget(1 << 20) }()
	<-telling
	go func() {
		d.Stop()
		close(stopped)
	}()
	select {
	case <-stopped:
		t.Error("stopped while the driver is being told")
	case <-time.After(20 * time.Millisecond):
	}
	close(told)
	if err := <-set; err != nil {
		t.Error(err)
	}
	<-stopped
}
