package net

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

func TestConfigSpace(t *testing.T) {
	w := newWire(t, 3)
	w.mtu = 9000
	g := newGuest(t, Config{Backend: w}, virtiotest.Options{})
	want := append(testMAC[:], 1, 0, 3, 0, 9000%256, 9000/256, 0, 0)
	if got := g.Config(0, len(want)); !bytes.Equal(got, want) {
		t.Errorf("configuration space % x, want % x", got, want)
	}
	if got := g.Config(4, 4); !bytes.Equal(got, want[4:8]) {
		t.Errorf("at 4: % x, want % x", got, want[4:8])
	}
	if got := g.Config(1<<40, 4); !bytes.Equal(got, make([]byte, 4)) {
		t.Errorf("far behind the end: % x, want zeros", got)
	}
	g.device.WriteConfig(0, []byte{9, 9, 9, 9, 9, 9})
	if got := g.Config(0, len(want)); !bytes.Equal(got, want) {
		t.Errorf("after a write: % x, want % x", got, want)
	}
	if got, want := g.device.QueueSizes(), 7; len(got) != want {
		t.Errorf("%d queues, want %d", len(got), want)
	}
	if g.device.Type() != virtio.TypeNet {
		t.Errorf("type %v", g.device.Type())
	}
}

func TestFeatures(t *testing.T) {
	const base = baseFeatures | FeatureMTU
	for _, test := range []struct {
		name     string
		offloads uint32
		pairs    int
		want     uint64
	}{
		{"no offloads", 0, 1, base},
		{"checksums", unix.TUN_F_CSUM, 1, base | FeatureCsum | FeatureGuestCsum},
		{"IPv4 only", unix.TUN_F_CSUM | unix.TUN_F_TSO4, 1, base | FeatureCsum | FeatureGuestCsum | FeatureHostTSO4 | FeatureGuestTSO4},
		{"several queues", 0, 2, base | FeatureMultiqueue},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWire(t, test.pairs)
			w.offloads = test.offloads
			d, err := New(Config{Backend: w, MAC: testMAC})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if got := d.Features(); got != test.want {
				t.Errorf("features %#x, want %#x", got, test.want)
			}
		})
	}
}

// TestOffloadsFollowFeatures tests that the back end is told what the driver
// accepted, at each start.
func TestOffloadsFollowFeatures(t *testing.T) {
	for _, test := range []struct {
		name    string
		without uint64
		want    uint32
	}{
		{"all", 0, unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN},
		{"none", guestOffloads, 0},
		{"segments without checksums are nothing", FeatureGuestCsum, 0},
		{"IPv4", FeatureGuestTSO6 | FeatureGuestECN, unix.TUN_F_CSUM | unix.TUN_F_TSO4},
		{"ECN without segments is nothing", FeatureGuestTSO4 | FeatureGuestTSO6, unix.TUN_F_CSUM},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGuest(t, Config{}, virtiotest.Options{Without: test.without})
			g.Stop()
			g.Resume()
			offloads, _ := g.wire.told()
			if got, want := fmt.Sprint(offloads), fmt.Sprint([]uint32{test.want, test.want}); got != want {
				t.Errorf("offloads of the back end were set to %s, want %s", got, want)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Config, *wire)
		want   string
	}{
		{"no MAC", func(c *Config, _ *wire) { c.MAC = MAC{} }, "not the address of one"},
		{"group MAC", func(c *Config, _ *wire) { c.MAC[0] = 1 }, "not the address of one"},
		{"small MTU", func(_ *Config, w *wire) { w.mtu = 67 }, "MTU 67"},
		{"large MTU", func(_ *Config, w *wire) { w.mtu = 65522 }, "MTU 65522"},
		{"limit", func(c *Config, _ *wire) { c.Send.Bandwidth.Burst = 1 }, "send: bandwidth"},
		{"limit", func(c *Config, _ *wire) { c.Receive.Operations.Burst = 1 }, "receive: operations"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWire(t, 1)
			c := Config{Backend: w, MAC: testMAC}
			test.change(&c, w)
			_, err := New(c)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if !w.closed {
				t.Error("the back end is still open")
			}
		})
	}
	if _, err := New(Config{MAC: testMAC}); err == nil {
		t.Error("no back end went through")
	}
	if _, err := New(Config{Backend: newWire(t, MaxPairs+1), MAC: testMAC}); err == nil {
		t.Errorf("%d queue pairs went through", MaxPairs+1)
	}
}

func TestAnnounce(t *testing.T) {
	status := func(g *guest) byte { return g.Config(6, 1)[0] }
	g := newGuest(t, Config{}, virtiotest.Options{})
	if s := status(g); s != statusLinkUp {
		t.Fatalf("status %d at the start, want link up", s)
	}
	g.device.Announce()
	g.AwaitConfigChange()
	if s := status(g); s != statusLinkUp|statusAnnounce {
		t.Errorf("status %d after Announce, want %d", s, statusLinkUp|statusAnnounce)
	}
	if answer := g.command(classAnnounce, announceAck); answer != ackOK {
		t.Errorf("answer %d to the acknowledgement", answer)
	}
	if s := status(g); s != statusLinkUp {
		t.Errorf("status %d after the acknowledgement, want %d", s, statusLinkUp)
	}

	// Asked for while stopped, the guest is told after the start, once.
	g.Stop()
	g.device.Announce()
	select {
	case <-g.ConfigChanged:
		t.Error("a stopped device spoke to the driver")
	default:
	}
	g.Resume()
	g.AwaitConfigChange()
	if s := status(g); s&statusAnnounce == 0 {
		t.Errorf("status %d after the start, want %d", s, statusLinkUp|statusAnnounce)
	}
	g.command(classAnnounce, announceAck)
	select {
	case <-g.ConfigChanged:
		t.Error("told twice")
	default:
	}

	g = newGuest(t, Config{}, virtiotest.Options{Without: FeatureAnnounce})
	g.device.Announce()
	if s := status(g); s != statusLinkUp {
		t.Errorf("status %d of a driver that cannot announce, want %d", s, statusLinkUp)
	}
}

// TestBackendEnds tests that the guest loses its link when the other end goes
// away, and nothing else.
func TestBackendEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		then func(g *guest)
	}{
		{"while receiving", func(*guest) {}},
		{"while sending", func(g *guest) { g.send(testFrame(60, 1)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			var c virtiotest.Warnings
			g := newGuest(t, Config{Warn: c.Add}, virtiotest.Options{})
			g.give(4, 2048)
			if err := unix.Shutdown(g.wire.peers[0], unix.SHUT_RDWR); err != nil {
				t.Fatal(err)
			}
			test.then(g)
			g.AwaitConfigChange()
			if s := g.Config(6, 1)[0]; s != 0 {
				t.Errorf("status %d, want link down", s)
			}
			g.send(testFrame(60, 2)) // is taken and lost
			await(t, "the operator is warned", func() bool { return len(c.All()) > 0 })
			if errs := c.All(); len(errs) != 1 || !errors.Is(errs[0], errEnd) {
				t.Errorf("warnings %v, want one", errs)
			}
			if s := g.device.Stats(); s.Send.Frames != 0 || s.Send.Dropped == 0 {
				t.Errorf("counts %+v", s)
			}
		})
	}
}

func TestStartErrors(t *testing.T) {
	d, err := New(Config{Backend: &wire{fds: newWire(t, 1).fds, mtu: 1500, fail: errors.New("no")}, MAC: testMAC})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Start(virtio.Driver{Queues: make([]*virtio.Queue, 3)}); err == nil {
		t.Error("a back end that refuses the offloads went unnoticed")
	}
	d.Stop() // has nothing to do
}

func TestControl(t *testing.T) {
	pairs := func(n uint16) []byte { return binary.LittleEndian.AppendUint16(nil, n) }
	offload := func(f uint64) []byte { return binary.LittleEndian.AppendUint64(nil, f) }
	for _, test := range []struct {
		name       string
		class, cmd byte
		data       []byte
		want       byte
	}{
		{"pairs", classMQ, mqPairsSet, pairs(2), ackOK},
		{"all pairs", classMQ, mqPairsSet, pairs(3), ackOK},
		{"too many pairs", classMQ, mqPairsSet, pairs(4), ackErr},
		{"no pairs", classMQ, mqPairsSet, pairs(0), ackErr},
		{"half a number of pairs", classMQ, mqPairsSet, []byte{1}, ackErr},
		{"MAC", classMAC, macAddrSet, []byte{2, 1, 2, 3, 4, 5}, ackOK},
		{"group MAC", classMAC, macAddrSet, []byte{1, 1, 2, 3, 4, 5}, ackErr},
		{"half a MAC", classMAC, macAddrSet, []byte{2, 1, 2}, ackErr},
		{"MAC table", classMAC, 0, make([]byte, 8), ackErr},
		{"announced", classAnnounce, announceAck, nil, ackOK},
		{"announced otherwise", classAnnounce, 1, nil, ackErr},
		{"no offloads", classOffloads, offloadsSet, offload(0), ackOK},
		{"some offloads", classOffloads, offloadsSet, offload(FeatureGuestCsum | FeatureGuestTSO4), ackOK},
		{"others than offloads", classOffloads, offloadsSet, offload(FeatureMAC), ackErr},
		{"half of offloads", classOffloads, offloadsSet, make([]byte, 7), ackErr},
		{"promiscuous", 0, 0, []byte{1}, ackErr},
		{"VLAN", 2, 0, []byte{1, 0}, ackErr},
		{"unknown", 77, 77, bytes.Repeat([]byte{7}, 3000), ackErr},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGuest(t, Config{Backend: newWire(t, 3)}, virtiotest.Options{})
			if got := g.command(test.class, test.cmd, test.data...); got != test.want {
				t.Errorf("answer %d, want %d", got, test.want)
			}
			// What the driver did not accept is refused.
			g = newGuest(t, Config{Backend: newWire(t, 3)}, virtiotest.Options{
				Without: FeatureControlMAC | FeatureAnnounce | FeatureGuestOffloads,
			})
			if got := g.command(test.class, test.cmd, test.data...); test.class != classMQ && got != ackErr {
				t.Errorf("answer %d without the feature, want %d", got, ackErr)
			}
		})
	}
}

func TestControlEffects(t *testing.T) {
	w := newWire(t, 3)
	g := newGuest(t, Config{Backend: w}, virtiotest.Options{})
	mac := MAC{2, 9, 8, 7, 6, 5}
	g.command(classMAC, macAddrSet, mac[:]...)
	if got := g.Config(0, 6); !bytes.Equal(got, mac[:]) || g.device.MAC() != mac {
		t.Errorf("MAC % x, want %v", got, mac)
	}
	g.command(classMQ, mqPairsSet, 2, 0)
	g.command(classOffloads, offloadsSet, binary.LittleEndian.AppendUint64(nil, FeatureGuestCsum|FeatureGuestTSO6)...)
	told := func(when string, offloads []uint32, pairs []int) {
		t.Helper()
		o, p := w.told()
		if got, want := fmt.Sprint(o, p), fmt.Sprint(offloads, pairs); got != want {
			t.Errorf("%s: the back end was told offloads and pairs %s, want %s", when, got, want)
		}
	}
	const some = unix.TUN_F_CSUM | unix.TUN_F_TSO6
	told("commands", []uint32{15, some}, []int{1, 2})

	// All of that outlives a pause, and not a reset.
	g.Stop()
	g.Resume()
	told("a pause", []uint32{15, some, some}, []int{1, 2, 2})
	g.Reset()
	told("a reset", []uint32{15, some, some, 15}, []int{1, 2, 2, 1})
	if g.device.MAC() != testMAC {
		t.Errorf("MAC %v after a reset, want %v", g.device.MAC(), testMAC)
	}
}

// TestControlTrouble tests that the guest gets an error and the operator one
// warning when the host refuses.
func TestControlTrouble(t *testing.T) {
	var c virtiotest.Warnings
	w := newWire(t, 2)
	g := newGuest(t, Config{Backend: w, Warn: c.Add}, virtiotest.Options{})
	w.mu.Lock()
	w.fail = errors.New("no")
	w.mu.Unlock()
	for range 2 {
		if got := g.command(classMQ, mqPairsSet, 2, 0); got != ackErr {
			t.Errorf("answer %d", got)
		}
		if got := g.command(classOffloads, offloadsSet, make([]byte, 8)...); got != ackErr {
			t.Errorf("answer %d", got)
		}
	}
	if errs := c.All(); len(errs) != 2 {
		t.Errorf("warnings %v, want two", errs)
	}
	if s := g.device.Save(); s.Pairs != 1 || s.OffloadsSet {
		t.Errorf("state %+v after commands that failed", s)
	}
}

func TestControlWithoutAnswer(t *testing.T) {
	g := newGuest(t, Config{}, virtiotest.Options{})
	q := g.control()
	q.Publish(q.Chain(virtiotest.Buffer{GPA: g.Memory.Put([]byte{classAnnounce, announceAck}), Len: 2}))
	q.Kick()
	if err := g.AwaitFail(); !errors.Is(err, virtio.ErrBroken) {
		t.Errorf("failed with %v, want %v", err, virtio.ErrBroken)
	}
}

// TestControlQueuePlace tests that the control queue of a driver that knows of
// one pair only is behind that.
func TestControlQueuePlace(t *testing.T) {
	g := newGuest(t, Config{Backend: newWire(t, 3)}, virtiotest.Options{
		Without: FeatureMultiqueue, Skip: map[int]bool{3: true, 4: true, 5: true, 6: true},
	})
	answer, _ := g.Queues[2].Do([][]byte{{classAnnounce, announceAck}}, 1)
	if answer[0][0] != ackOK {
		t.Errorf("answer %d", answer[0][0])
	}
}

func TestSaveRestore(t *testing.T) {
	limits := limit.Config{Operations: limit.Rate{PerSecond: 1, Burst: 100}}
	w := newWire(t, 2)
	g := newGuest(t, Config{Backend: w, Send: limits, Receive: limits}, virtiotest.Options{})
	mac := MAC{2, 9, 8, 7, 6, 5}
	g.command(classMAC, macAddrSet, mac[:]...)
	g.command(classMQ, mqPairsSet, 2, 0)
	g.command(classOffloads, offloadsSet, binary.LittleEndian.AppendUint64(nil, FeatureGuestCsum)...)
	for i := range 10 {
		g.send(testFrame(60, i))
		w.get()
	}
	g.give(8, 2048)
	w.put(testFrame(60, 0))
	g.receive()

	other := newWire(t, 2)
	d, err := New(Config{Backend: other, MAC: testMAC, Send: limits, Receive: limits})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	g.Move(d, func() {
		s := g.device.Save()
		if err := d.Restore(s); err != nil {
			t.Fatal(err)
		}
		if got := d.Save(); got != s {
			t.Errorf("state %+v, want %+v", got, s)
		}
		if s.Send.Operations.Tokens > 90 {
			t.Errorf("%d tokens left of 100 after 10 frames", s.Send.Operations.Tokens)
		}
		d.Announce()
	})
	g.device, g.wire = d, other
	g.AwaitConfigChange()
	offloads, pairs := other.told()
	if got := fmt.Sprint(d.MAC(), pairs, offloads); got != fmt.Sprint(mac, []int{2}, []uint32{unix.TUN_F_CSUM}) {
		t.Errorf("after the move: MAC, pairs and offloads are %s", got)
	}
	// Both directions go on, with the buffers that were given before.
	g.send(testFrame(100, 3))
	if _, frame := other.get(); !bytes.Equal(frame, testFrame(100, 3)) {
		t.Error("frame sent after the move is damaged")
	}
	for i := range 7 {
		other.put(testFrame(1000+i, i))
		_, frame := g.receive()
		sameFrame(t, "after the move", frame, testFrame(1000+i, i))
	}
}

func TestRestoreRefuses(t *testing.T) {
	w := newWire(t, 2)
	w.offloads = unix.TUN_F_CSUM
	d, err := New(Config{Backend: w, MAC: testMAC})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	good := d.Save()
	for _, test := range []struct {
		name   string
		change func(*State)
	}{
		{"version", func(s *State) { s.Version = 2 }},
		{"no MAC", func(s *State) { s.MAC = MAC{} }},
		{"no pairs", func(s *State) { s.Pairs = 0 }},
		{"too many pairs", func(s *State) { s.Pairs = 3 }},
		{"offloads", func(s *State) { s.OffloadsSet, s.Offloads = true, FeatureGuestTSO4 }},
		{"limits", func(s *State) { s.Send.Version = 7 }},
	} {
		s := good
		test.change(&s)
		if err := d.Restore(s); err == nil {
			t.Errorf("%s: %+v went through", test.name, s)
		}
		if got := d.Save(); got != good {
			t.Errorf("%s: state became %+v", test.name, got)
		}
	}
	if err := d.Restore(good); err != nil {
		t.Error(err)
	}
}
