package live

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/memory/uffd"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// TestLateList: memory of a guest that may run already is not discarded because a source
// says so.
func TestLateList(t *testing.T) {
	fd, err := uffd.Open(uffd.Options{})
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	fd.Close()
	d := newThere(t)
	if err := d.in.mem.Write(0, []byte("kept")); err != nil {
		t.Fatal(err)
	}
	id := handover.NewID()
	dialer := &stream.Dialer{Addr: d.addr, ID: stream.ID(id)}
	conn, err := dialer.Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := newControl(conn, nil)
	defer conn.Close()
	dial := func(ch stream.Channel, index int) net.Conn {
		conn, err := dialer.Data(t.Context(), ch, index)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.sendJSON(frameOffer, Offer{Version: Version, ID: id, Epoch: 1, Name: "traveller", Connections: 1, PostCopy: true, Guest: []byte("{}")}))
	_, err = c.expect(frameAnswer, time.Minute)
	must(err)
	s := stream.NewSender([]net.Conn{dial(stream.Data, 0)}, stream.SenderOptions{})
	defer s.Close()
	must(s.Finish(t.Context()))
	must(c.send(frameState, []byte("state")))
	_, err = c.expect(frameHandover, time.Minute) // READY
	must(err)
	pages := make([]uint64, (d.in.mem.Size()/memory.PageSize+63)/64)
	pages[0] = 1
	r := stream.NewRest(d.in.mem, pages, stream.RestOptions{})
	err = r.Serve(t.Context(), dial(stream.Urgent, askedIndex), dial(stream.Urgent, pushedIndex))
	if err == nil {
		t.Error("the list was taken")
	}
	var kept [4]byte
	if err := d.in.mem.Read(0, kept[:]); err != nil || !strings.Contains(string(kept[:]), "kept") {
		t.Errorf("the memory has %q, %v", kept, err)
	}
}
