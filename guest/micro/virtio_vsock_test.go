package micro

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/vsock"
)

const vsockPort = 1024

// runVsock runs the program with godwit's device, and a peer on the host that
// gets the connection. It returns when both are done.
func runVsock(t *testing.T, v Vsock, peer func(net.Conn) error) Result {
	t.Helper()
	path := filepath.Join(t.TempDir(), "v")
	listener, err := net.Listen("unix", fmt.Sprintf("%s_%d", path, vsockPort))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		c, err := listener.Accept()
		if err == nil {
			err = peer(c)
			c.Close()
		}
		done <- err
	}()
	d, err := vsock.New(vsock.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	v.Port, v.LocalPort, v.Stop = vsockPort, 5000, AnyStop()
	r := newVirtioGuest(t, program(t)(v.ELF()), d).run()
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return r
}

func TestVsockRoundTrips(t *testing.T) {
	echo := func(c net.Conn) error {
		_, err := io.Copy(c, c)
		return err
	}
	for _, v := range []Vsock{
		{Size: 8, Count: 300},
		{Size: 4096, Count: 100, Depth: 4},
		{Size: 64 << 10, Count: 50, Depth: 2, Driver: Driver{EventIdx: true}},
		{Size: 40000, Count: 50, Depth: 16, BufferSize: 1000, Driver: Driver{AlwaysKick: true}},
	} {
		t.Run(fmt.Sprint(v.Size), func(t *testing.T) {
			v.Verify, v.Seed = true, 5
			r := runVsock(t, v, echo)
			if r.Count != v.Count || r.Bytes != v.Count*uint64(v.Size) || r.Histogram.Count() != v.Count || r.Mismatches > 0 {
				t.Errorf("%d round trips, %d bytes, %d times, %d mismatches", r.Count, r.Bytes, r.Histogram.Count(), r.Mismatches)
			}
		})
	}
}

func TestVsockSendStream(t *testing.T) {
	for _, v := range []Vsock{
		{Size: 8, Count: 2000, Depth: 8},
		{Size: 64 << 10, Count: 200, Depth: 4, Driver: Driver{EventIdx: true}},
	} {
		t.Run(fmt.Sprint(v.Size), func(t *testing.T) {
			v.Mode, v.Verify, v.Seed = SendStream, true, 6
			var got bytes.Buffer
			r := runVsock(t, v, func(c net.Conn) error {
				_, err := got.ReadFrom(c)
				return err
			})
			want := make([]byte, v.Count*uint64(v.Size))
			Pattern(v.Seed, 0, want)
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("the host got other data: %d bytes of %d", got.Len(), len(want))
			}
			if r.Count != v.Count || r.Bytes != uint64(len(want)) {
				t.Errorf("%d packets, %d bytes", r.Count, r.Bytes)
			}
		})
	}
}

func TestVsockReceiveStream(t *testing.T) {
	v := Vsock{Mode: ReceiveStream, Size: 64 << 10, Count: 100, Depth: 16, Verify: true, Seed: 7}
	data := make([]byte, v.Count*uint64(v.Size))
	Pattern(v.Seed, 0, data)
	r := runVsock(t, v, func(c net.Conn) error {
		if _, err := c.Write(data); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, c) // until the guest ends it
		return err
	})
	if r.Count != v.Count || r.Bytes != uint64(len(data)) || r.Mismatches > 0 {
		t.Errorf("%d packets, %d bytes, %d mismatches", r.Count, r.Bytes, r.Mismatches)
	}
}

func TestVsockRefused(t *testing.T) {
	d, err := vsock.New(vsock.Config{Path: filepath.Join(t.TempDir(), "v")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	v := Vsock{Driver: Driver{Stop: AnyStop()}, Port: 1, LocalPort: 2, Size: 1, Count: 1}
	r := newVirtioGuest(t, program(t)(v.ELF()), d).run()
	if r.Status != StatusRefused {
		t.Errorf("status %d, %v: nobody listens", r.Status, r.Err())
	}
}

func TestVsockMistakes(t *testing.T) {
	ok := Vsock{Size: 8, Count: 1}
	for _, test := range []struct {
		change func(*Vsock)
		want   string
	}{
		{func(v *Vsock) { v.Size = 0 }, "packets of 0 bytes"},
		{func(v *Vsock) { v.Size = 65537 }, "packets of 65537"},
		{func(v *Vsock) { v.Count = Forever }, "want an end"},
		{func(v *Vsock) { v.Depth = 257 }, "in flight"},
		{func(v *Vsock) { v.BufferSize = -1 }, "receive buffers"},
		{func(v *Vsock) { v.Mode = -1 }, "vsock mode"},
		{func(v *Vsock) { v.Indirect = true }, "indirect"},
		{func(v *Vsock) { v.Size, v.Verify = 9, true }, "multiple of 8"},
	} {
		v := ok
		test.change(&v)
		if _, err := v.ELF(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want %q in it", v, err, test.want)
		}
	}
}
