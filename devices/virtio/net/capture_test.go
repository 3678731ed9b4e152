package net

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/godwit-vmm/godwit/devices/virtio/net/pcap"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// TestCapture tests that a capture has what passes, both ways.
func TestCapture(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.pcapng")
	f, err := pcap.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	i, err := f.Interface("net0")
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, Config{Capture: i}, virtiotest.Options{})
	g.give(8, 1000)
	var want []capturedFrame
	for n := range 3 {
		size := 900 + 500*n
		g.wire.put(testFrame(size, n))
		g.receive()
		g.send(testFrame(size, 10+n))
		g.wire.get()
		want = append(want, capturedFrame{pcap.In, testFrame(size, n)}, capturedFrame{pcap.Out, testFrame(size, 10+n)})
	}
	g.Stop() // writes what has been collected
	got := readCapture(t, path)
	if len(got) != len(want) {
		t.Fatalf("%d frames captured, want %d", len(got), len(want))
	}
	for n := range want {
		if got[n].direction != want[n].direction {
			t.Errorf("frame %d: direction %d, want %d", n, got[n].direction, want[n].direction)
		}
		sameFrame(t, fmt.Sprintf("captured %d", n), got[n].data, want[n].data)
	}
	// A capture that cannot be written is the operator's trouble, once, and
	// not the guest's.
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var c virtiotest.Warnings
	g = newGuest(t, Config{Capture: i, Warn: c.Add}, virtiotest.Options{})
	for n := range 3 {
		g.send(testFrame(60, n))
		g.wire.get()
	}
	if errs := c.All(); len(errs) != 1 {
		t.Errorf("warnings %v, want one", errs)
	}
}

// capturedFrame is a frame of a capture file.
type capturedFrame struct {
	direction pcap.Direction
	data      []byte
}

// readCapture reads a file with a reader that is not ours.
func readCapture(t *testing.T, path string) (frames []capturedFrame) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, _, options, err := r.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			return frames
		}
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, capturedFrame{pcap.Direction(options.Flags.Direction), data})
	}
}
