package blk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mirror copies a disk as a migration does.
type mirror struct {
	t      *testing.T
	device *Device
	copy   []byte
	dirty  []uint64
}

func newMirror(t *testing.T, d *Device) *mirror {
	size := d.Capacity()
	return &mirror{t, d, make([]byte, size), make([]uint64, (size/LogGranule+64)/64)}
}

// all copies all data, from the beginning of the log.
func (m *mirror) all() {
	m.device.StartLog()
	for at, size := uint64(0), m.device.Capacity(); at < size; {
		start, end, err := m.device.NextData(at)
		if err != nil || start < at || end < start || end > size {
			m.t.Errorf("data from %d on: %d to %d, %v", at, start, end, err)
			return
		}
		m.read(start, end)
		at = end
	}
}

func (m *mirror) read(start, end uint64) {
	if _, err := m.device.ReadAt(m.copy[start:end], int64(start)); err != nil {
		m.t.Error(err)
	}
}

// round copies what was written since.
func (m *mirror) round() {
	m.device.FetchDirty(m.dirty)
	for i := range uint64(len(m.dirty)) * 64 {
		if m.dirty[i/64]>>(i%64)&1 != 0 {
			m.read(i*LogGranule, min((i+1)*LogGranule, uint64(len(m.copy))))
		}
	}
	clear(m.dirty)
}

// TestMirror copies a disk that several queues write to, in every way in which a device
// carries out requests. What is left when the device stands still makes the copy whole.
func TestMirror(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, overlaid := range []bool{false, true} {
			for _, c := range []Config{{}, {noInline: true}, {Direct: true}} {
				t.Run(fmt.Sprintf("overlay=%v,direct=%v,noInline=%v", overlaid, c.Direct, c.noInline), func(t *testing.T) {
					path, contents := makeImage(t, modelSectors*SectorSize)
					if overlaid {
						c.Overlay = overlayFor(t)
					}
					c.Path, c.engine, c.Queues = path, e, modelClients
					mirrored(t, c, contents)
				})
			}
		}
	})
}

func mirrored(t *testing.T, c Config, contents []byte) {
	d := newDisk(t, c)
	var clients []*client
	for i := range modelClients {
		clients = append(clients, newClient(d, i))
	}
	var all sync.WaitGroup
	begin, written := make(chan struct{}), make(chan struct{})
	for i, c := range clients {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(i)))
			playModel(c, d.device, i, rng, contents)
			if i == 0 {
				close(begin) // some is written before the log begins
			}
			playModel(c, d.device, i, rng, contents)
		})
	}
	go func() {
		all.Wait()
		close(written)
	}()
	<-begin
	m := newMirror(t, d.device)
	m.all()
	for going := true; going; {
		m.round()
		select {
		case <-written:
			going = false
		case <-time.After(time.Millisecond): // the guest has to get on, too
		}
	}
	d.Stop()
	m.round()
	if !bytes.Equal(m.copy, contents) {
		t.Error("the copy is not what the guest wrote")
	}
	m.device.FetchDirty(m.dirty)
	m.device.StopLog()
	if m.device.FetchDirty(m.dirty); bytes.Contains(fmt.Append(nil, m.dirty), []byte("1")) {
		t.Errorf("something is dirty on a disk that stands still: %v", m.dirty)
	}
}

// TestLog: what is in the log is what requests have touched.
func TestLog(t *testing.T) {
	const granules = 70
	path, _ := makeImage(t, granules*LogGranule-512)
	d := newDisk(t, Config{Path: path})
	const sectors = LogGranule / SectorSize
	for _, test := range []struct {
		name string
		do   func()
		want []uint64
	}{
		{"nothing", func() {}, nil},
		{"a read", func() { d.read(0, 4096) }, nil},
		{"a flush", func() { d.mustSend(typeFlush, 0) }, nil},
		{"the first sector", func() { d.mustSend(typeOut, 0, pattern(512, 1)) }, []uint64{0}},
		{"a border", func() { d.mustSend(typeOut, sectors-1, pattern(1024, 1)) }, []uint64{0, 1}},
		{"a border of words", func() { d.mustSend(typeOut, 64*sectors-1, pattern(1024, 1)) }, []uint64{63, 64}},
		{"three granules", func() { d.mustSend(typeOut, 2*sectors, pattern(3*LogGranule, 1)) }, []uint64{2, 3, 4}},
		{"the last sector", func() { d.mustSend(typeOut, granules*sectors-2, pattern(512, 1)) }, []uint64{69}},
		{"zeros", func() { d.mustSend(typeWriteZeroes, 0, segment(5*sectors, sectors, 0), segment(9*sectors, 1, 1)) }, []uint64{5, 9}},
		{"discarded", func() { d.mustSend(typeDiscard, 0, segment(6*sectors, 2*sectors, 0)) }, []uint64{6, 7}},
		{"beyond the end", func() { d.send(typeOut, granules*sectors, pattern(512, 1)) }, nil},
	} {
		dirty := make([]uint64, 2)
		d.device.StartLog()
		test.do()
		d.device.FetchDirty(dirty)
		want := make([]uint64, 2)
		for _, n := range test.want {
			want[n/64] |= 1 << (n % 64)
		}
		if dirty[0] != want[0] || dirty[1] != want[1] {
			t.Errorf("%s: the log has %x, want %x", test.name, dirty, want)
		}
		clear(dirty)
		if d.device.FetchDirty(dirty); dirty[0]|dirty[1] != 0 {
			t.Errorf("%s: the log has %x after it was fetched", test.name, dirty)
		}
	}
}

// TestLogFailed: what a request has written that failed is in the log: some of it may be
// on the disk.
func TestLogFailed(t *testing.T) {
	path, _ := makeImage(t, 4*LogGranule)
	d := newDisk(t, Config{Path: path})
	// A disk that has no room for more: writes into the hole fail.
	if err := os.Truncate(path, LogGranule); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	less := limit
	less.Cur = 2 * LogGranule
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &less); err != nil {
		t.Fatal(err)
	}
	d.device.StartLog()
	s := d.send(typeOut, LogGranule/SectorSize, pattern(2*LogGranule, 1))
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if s != statusIOError {
		t.Fatalf("status %d of a write that cannot be", s)
	}
	dirty := make([]uint64, 1)
	if d.device.FetchDirty(dirty); dirty[0] != 1<<1|1<<2 {
		t.Errorf("the log has %x", dirty)
	}
}

func TestNextData(t *testing.T) {
	const size = 64 * LogGranule
	path := filepath.Join(t.TempDir(), "disk.img")
	writeFile(t, path, nil)
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	overlay := overlayFor(t)
	check := func(d *Device, want ...uint64) {
		t.Helper()
		var got []uint64
		for at := uint64(0); at < size; {
			start, end, err := d.NextData(at)
			if err != nil {
				t.Fatal(err)
			}
			for g := start / LogGranule; g*LogGranule < end; g++ {
				if len(got) == 0 || got[len(got)-1] != g {
					got = append(got, g)
				}
			}
			at = end
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("data in granules %v, want %v", got, want)
		}
	}
	device, err := New(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	d := startDisk(t, device)
	check(d.device)
	const sectors = LogGranule / SectorSize
	d.mustSend(typeOut, 3*sectors, pattern(LogGranule, 1))
	d.mustSend(typeOut, 63*sectors, pattern(LogGranule, 1))
	check(d.device, 3, 63)
	d.Stop()
	if err := d.device.Close(); err != nil {
		t.Fatal(err)
	}
	// In the overlay, and with the base behind it.
	device = newDevice(t, Config{Path: path, Overlay: overlay})
	d = startDisk(t, device)
	d.mustSend(typeOut, 10*sectors, pattern(LogGranule, 2))
	d.mustSend(typeWriteZeroes, 0, segment(63*sectors, sectors, 1))
	check(device, 3, 10)
	d.Stop()
}

// TestReadAt: no more of a disk is read than there is.
func TestReadAt(t *testing.T) {
	path, contents := makeImage(t, 1<<20)
	d := newDevice(t, Config{Path: path})
	p := make([]byte, 4096)
	if n, err := d.ReadAt(p, 8192); n != len(p) || err != nil || !bytes.Equal(p, contents[8192:8192+4096]) {
		t.Errorf("read %d bytes, %v", n, err)
	}
	for _, offset := range []int64{-1, 1<<20 - 4095, 1 << 20, 1 << 62} {
		if _, err := d.ReadAt(p, offset); err == nil {
			t.Errorf("read at %d", offset)
		}
	}
	if err := os.Truncate(path, 1<<19); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(p, 1<<19); !errors.Is(err, unix.EIO) {
		t.Errorf("read what is not there any more: %v", err)
	}
}
