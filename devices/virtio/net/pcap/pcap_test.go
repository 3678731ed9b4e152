package pcap

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

type packet struct {
	iface  int
	dir    Direction
	length int
	data   []byte
	at     time.Time
}

// read reads a file with a reader that is not ours.
func read(t *testing.T, path string) (names []string, packets []packet) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.NgReaderOptions{WantMixedLinkType: true, ErrorOnMismatchingLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, info, options, err := r.ReadPacketDataWithOptions()
		if err != nil {
			break
		}
		p := packet{info.InterfaceIndex, 0, info.Length, data, info.Timestamp}
		if options.Flags != nil {
			p.dir = Direction(options.Flags.Direction)
		}
		packets = append(packets, p)
	}
	for i := range r.NInterfaces() {
		ni, err := r.Interface(i)
		if err != nil {
			t.Fatal(err)
		}
		if ni.LinkType != layers.LinkTypeEthernet {
			t.Errorf("interface %d has link type %v", i, ni.LinkType)
		}
		names = append(names, ni.Name)
	}
	return names, packets
}

func frame(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + n)
	}
	return p
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.pcapng")
	f, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var interfaces []*Interface
	wantNames := []string{"a", "vm one net0", "abcd", ""}
	for _, name := range wantNames {
		i, err := f.Interface(name)
		if err != nil {
			t.Fatal(err)
		}
		interfaces = append(interfaces, i)
	}
	var want []packet
	before := time.Now()
	for n, size := range []int{14, 60, 61, 62, 63, 1514, SnapLen, SnapLen + 1, 0} {
		p := packet{n % len(interfaces), In, size, frame(size)[:min(size, SnapLen)], time.Time{}}
		if n%2 == 1 {
			p.dir = Out
		}
		if err := interfaces[p.iface].Write(p.dir, frame(size)); err != nil {
			t.Fatal(err)
		}
		want = append(want, p)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	names, got := read(t, path)
	if fmt.Sprint(names) != fmt.Sprint(wantNames) {
		t.Errorf("interfaces %q, want %q", names, wantNames)
	}
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if g.iface != w.iface || g.dir != w.dir || g.length != w.length || !bytes.Equal(g.data, w.data) {
			t.Errorf("packet %d: interface %d, direction %d, %d of %d bytes; want %d, %d, %d of %d",
				i, g.iface, g.dir, len(g.data), g.length, w.iface, w.dir, len(w.data), w.length)
		}
		if g.at.Before(before) || g.at.After(time.Now()) {
			t.Errorf("packet %d is of %v, written at %v", i, g.at, before)
		}
	}
	if err := interfaces[0].Write(In, frame(60)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write after Close: %v, want %v", err, os.ErrClosed)
	}
	if err := errors.Join(interfaces[0].Flush(), f.Close()); err != nil {
		t.Errorf("after Close: %v", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("file mode %v, want 0600", info.Mode().Perm())
	}
}

func TestFlush(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.pcapng")
	f, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	i, err := f.Interface("net0")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Write(In, frame(60)); err != nil {
		t.Fatal(err)
	}
	if _, got := read(t, path); len(got) != 0 {
		t.Fatalf("%d packets before Flush, want them collected", len(got))
	}
	if err := i.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, got := read(t, path); len(got) != 1 {
		t.Errorf("%d packets after Flush, want 1", len(got))
	}
}

func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.pcapng")
	f, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	const each = 500
	var wg sync.WaitGroup
	for n := range 4 {
		i, err := f.Interface(fmt.Sprint(n))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for k := range each {
				if err := i.Write(Out, frame(14+k)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_, got := read(t, path)
	if len(got) != 4*each {
		t.Fatalf("%d packets, want %d", len(got), 4*each)
	}
	seen := make(map[int]int)
	for _, p := range got {
		if want := frame(14 + seen[p.iface]); !bytes.Equal(p.data, want) {
			t.Fatalf("interface %d, packet %d is damaged", p.iface, seen[p.iface])
		}
		seen[p.iface]++
	}
}

func TestErrors(t *testing.T) {
	if _, err := Create(filepath.Join(t.TempDir(), "none", "out")); err == nil {
		t.Error("a file in a folder that is not there was created")
	}
	if _, err := Create("/dev/full"); err == nil {
		t.Error("a full disk was not noticed")
	}
	f, err := Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Interface(strings.Repeat("x", 256)); err == nil {
		t.Error("a name of 256 bytes went through")
	}
}

func TestAllocations(t *testing.T) {
	f, err := Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	i, err := f.Interface("net0")
	if err != nil {
		t.Fatal(err)
	}
	p := frame(1500)
	if n := testing.AllocsPerRun(1000, func() {
		if err := i.Write(In, p); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}
