package vsock

import (
	"io"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

func TestStats(t *testing.T) {
	d := newDevice(t)
	g := startGuest(t, d, virtiotest.Options{})
	host, guest := pair(t, d, g)
	if _, err := io.WriteString(host, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(guest, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(guest, "hi"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(host, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	if got, want := d.Stats(), (Stats{Connections: 1, Opened: 1, Received: 5, Sent: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	host.Close()
	guest.shutdown(noMore)
	guest.awaitEnd()
	awaitEmpty(t, d, g)
	if got, want := d.Stats(), (Stats{Opened: 1, Received: 5, Sent: 2}); got != want {
		t.Errorf("after the end: got %+v, want %+v", got, want)
	}
}
