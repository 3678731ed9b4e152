package console

import (
	"errors"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

func TestStats(t *testing.T) {
	out := newTerminal()
	d := newDevice(t, Config{Out: out, Warn: func(error) {}})
	driver := virtiotest.Start(t, d, virtiotest.Options{})
	if _, err := d.Send(t.Context(), []byte("keys")); err != nil {
		t.Fatal(err)
	}
	driver.Queues[queueReceive].Do(nil, 3)
	write := func(text string) { driver.Queues[queueTransmit].Do([][]byte{[]byte(text)}) }
	write("hello")
	d.WriteConfig(configEmergency, []byte{'!'})
	flush(t, d)
	if got, want := d.Stats(), (Stats{Read: 3, Written: 6}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	out.mu.Lock()
	out.fail = errors.New("gone")
	out.mu.Unlock()
	write("lost")
	_ = d.Flush(t.Context()) // the error is the terminal's
	write("as well")
	d.WriteConfig(configEmergency, []byte{'!'})
	if got, want := d.Stats(), (Stats{Read: 3, Written: 18, Dropped: 12}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
