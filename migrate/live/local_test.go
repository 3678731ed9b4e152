package live

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// listenLocal has a host that receives listen at a unix socket, too, and notes the offers.
func listenLocal(t *testing.T, d *there) (addr string, offers chan Offer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "receive")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	offers = make(chan Offer, 16)
	d.New = func(o Offer) (Incoming, error) {
		offers <- o
		return d.in, nil
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	go func() { served <- d.Serve(ctx, l) }()
	return "unix:" + path, offers
}

// someFiles are n files with their names.
func someFiles(t *testing.T, n int) (files []OfferedFile) {
	t.Helper()
	for i := range n {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		files = append(files, OfferedFile{Name: fmt.Sprint("file ", i), File: f})
	}
	return files
}

// TestLocal: a guest whose memory is passed moves without a copy.
func TestLocal(t *testing.T) {
	d := newThere(t)
	addr, offers := listenLocal(t, d)
	g, o := newFakeGuest(t), options(t, addr)
	o.Offer.Files, o.Offer.SharesMemory = someFiles(t, MaxFiles), true
	report, err := Migrate(t.Context(), t.Context(), g, o)
	if err != nil {
		t.Fatal(err)
	}
	if report.Shared != guestSize || report.Bytes != 0 || report.Wire != 0 || !d.in.runs() {
		t.Errorf("%+v, and it runs there: %v", report, d.in.runs())
	}
	got := <-offers
	if got.Peer != os.Getpid() || len(got.Files) != MaxFiles || !got.SharesMemory {
		t.Errorf("%d files from process %d, want %d from %d", len(got.Files), got.Peer, MaxFiles, os.Getpid())
	}
	for i, f := range got.Files {
		if f.Name != fmt.Sprint("file ", i) || f.File == nil {
			t.Errorf("file %d is %q, %v", i, f.Name, f.File)
		}
	}
	if s := <-d.ended; s != handover.DestinationDone {
		t.Errorf("the destination ended as %v", s)
	}
}

// TestLocalNot: memory is copied where files cannot come.
func TestLocalNot(t *testing.T) {
	d := newThere(t)
	g, o := newFakeGuest(t), options(t, d.addr)
	o.Offer.Files, o.Offer.SharesMemory = someFiles(t, 1), true
	report, err := Migrate(t.Context(), t.Context(), g, o)
	if err != nil {
		t.Fatal(err)
	}
	if report.Shared != 0 || report.Bytes != guestUsed {
		t.Errorf("%+v: want the memory copied", report)
	}
	<-d.ended
}

// TestLocalRefused: the guest goes on where a destination with its memory gives up.
func TestLocalRefused(t *testing.T) {
	for _, tt := range []struct {
		name  string
		wrong func(*there)
	}{
		{"prepare", func(d *there) { d.in.prepare = errMishap }},
		{"load", func(d *there) { d.in.load = errMishap }},
		{"locks", func(d *there) { d.in.locks = errMishap }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newThere(t)
			addr, _ := listenLocal(t, d)
			tt.wrong(d)
			g, o := newFakeGuest(t), options(t, addr)
			o.Offer.Files, o.Offer.SharesMemory = someFiles(t, 2), true
			if _, err := Migrate(t.Context(), t.Context(), g, o); err == nil || !strings.Contains(err.Error(), "mishap") {
				t.Errorf("got %v", err)
			}
			if !g.runs() || d.in.runs() {
				t.Errorf("it runs here %v, there %v", g.runs(), d.in.runs())
			}
			<-d.ended
		})
	}
}

// nulls is how many descriptors of the null device this process has.
func nulls(t *testing.T) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && to == os.DevNull {
			n++
		}
	}
	return n
}

// TestLocalHostile: files that do not go with the offer are not taken, and not kept.
func TestLocalHostile(t *testing.T) {
	files := someFiles(t, 1)
	fd := int(files[0].File.Fd())
	many := func(n int) []int {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = fd
		}
		return fds
	}
	for _, tt := range []struct {
		name string
		// says is how many files the offer has, and batches are those that come before,
		// a byte of the offer each.
		says    int
		batches [][]int
		// after come with what is said after the offer.
		after int
		want  int
	}{
		{"all", 3, [][]int{many(3)}, 0, 3},
		{"in parts", 3, [][]int{many(1), many(2)}, 0, 3},
		{"fewer", 3, [][]int{many(2)}, 0, 0},
		{"more", 3, [][]int{many(4)}, 0, 0},
		{"none", 3, nil, 0, 0},
		{"not announced", 0, [][]int{many(2)}, 0, 0},
		{"very many", MaxFiles, [][]int{many(MaxFiles), many(MaxFiles), many(MaxFiles)}, 0, MaxFiles},
		{"later", 3, [][]int{many(3)}, 7, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := nulls(t)
			d := newThere(t)
			addr, offers := listenLocal(t, d)
			dialer := &stream.Dialer{Addr: addr, ID: stream.NewID()}
			plain, err := dialer.Control(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conn := plain.(*net.UnixConn)
			defer conn.Close()
			o := Offer{Version: Version, ID: handover.ID(dialer.ID), Epoch: 1, Name: "traveller", Connections: 1, Guest: []byte("{}"), SharesMemory: true}
			for i := range tt.says {
				o.Files = append(o.Files, OfferedFile{Name: fmt.Sprint(i)})
			}
			text, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			c := newControl(conn, nil)
			err = c.sendBy(frameOffer, text, func(frame []byte) (int, error) {
				for _, fds := range tt.batches {
					if _, _, err := conn.WriteMsgUnix(frame[:1], unix.UnixRights(fds...), nil); err != nil {
						return 0, err
					}
					frame = frame[1:]
				}
				return conn.Write(frame)
			})
			if err == nil {
				_, err = c.expect(frameAnswer, time.Minute)
			}
			if err == nil && tt.after > 0 {
				_, _, err = conn.WriteMsgUnix([]byte{0}, unix.UnixRights(many(tt.after)...), nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := <-offers; len(got.Files) != tt.want || got.SharesMemory != (tt.want > 0) {
				t.Errorf("%d files came, want %d", len(got.Files), tt.want)
			}
			_ = conn.Close()
			<-d.ended
			for until := time.Now().Add(time.Minute); nulls(t) != before; time.Sleep(time.Millisecond) {
				if time.Now().After(until) {
					t.Fatalf("%d files are open, and %d were before", nulls(t), before)
				}
			}
		})
	}
}

// TestOfferFiles: what an offer says of files is bounded.
func TestOfferFiles(t *testing.T) {
	good := Offer{Version: Version, Epoch: 1, Connections: 1}
	for want, files := range map[string][]OfferedFile{
		"want at most 250": make([]OfferedFile, MaxFiles+1),
		"want at most 64":  {{Name: strings.Repeat("x", maxFileName+1)}},
	} {
		o := good
		o.Files = files
		if err := o.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
