package blk

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"golang.org/x/sys/unix"
)

func TestReadWrite(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, direct := range []bool{false, true} {
			path, contents := makeImage(t, 1<<20)
			d := newDisk(t, Config{Path: path, Direct: direct, engine: e})
			d.expect(0, contents[:512])
			d.expect(2047, contents[len(contents)-512:])
			d.expect(0, contents)
			data := pattern(64<<10, 7)
			d.mustSend(typeOut, 100, data[:512], data[512:4096], data[4096:])
			copy(contents[100*SectorSize:], data)
			d.mustSend(typeFlush, 0)
			d.expect(0, contents)
			d.Stop()
			onDisk, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(onDisk, contents) {
				t.Errorf("direct=%v: the image differs from what was written: %v", direct, err)
			}
		}
	})
}

// TestFraming tests that header, data and status may be cut anywhere (§2.7.4.1).
func TestFraming(t *testing.T) {
	path, contents := makeImage(t, 64<<10)
	d := newDisk(t, Config{Path: path})
	q := d.Queues[0]
	h := header(typeIn, 3)
	answer, _ := q.Do([][]byte{h[:1], h[1:7], h[7:]}, 1, 500, 524)
	got := bytes.Join(answer, nil)
	if want := append(bytes.Clone(contents[3*512:5*512]), 0); !bytes.Equal(got, want) {
		t.Error("read with header, data and status in pieces: wrong data")
	}
	data := pattern(1024, 9)
	h = append(header(typeOut, 8), data...)
	answer, _ = q.Do([][]byte{h[:15], h[15:17], h[17:600], h[600:]}, 1)
	if answer[0][0] != 0 {
		t.Errorf("write with header and data in pieces: status %d", answer[0][0])
	}
	d.expect(8, data)
}

func TestRequests(t *testing.T) {
	const sectors = 128
	huge := ^uint64(0)
	for _, test := range []struct {
		name string
		out  [][]byte
		in   []int
		want status
	}{
		{"read at the end", [][]byte{header(typeIn, sectors-1)}, []int{512, 1}, statusOK},
		{"read nothing", [][]byte{header(typeIn, sectors)}, []int{1}, statusOK},
		{"read over the end", [][]byte{header(typeIn, sectors-1)}, []int{1024, 1}, statusIOError},
		{"read behind the end", [][]byte{header(typeIn, sectors)}, []int{512, 1}, statusIOError},
		{"read at the last sector of all", [][]byte{header(typeIn, huge)}, []int{512, 1}, statusIOError},
		{"read where bytes overflow", [][]byte{header(typeIn, 1<<55)}, []int{512, 1}, statusIOError},
		{"read half a sector", [][]byte{header(typeIn, 0)}, []int{256, 1}, statusIOError},
		{"read into the header", [][]byte{header(typeIn, 0), make([]byte, 512)}, []int{1}, statusIOError},
		{"write at the end", [][]byte{header(typeOut, sectors-1), make([]byte, 512)}, []int{1}, statusOK},
		{"write over the end", [][]byte{header(typeOut, sectors-1), make([]byte, 1024)}, []int{1}, statusIOError},
		{"write where sectors overflow", [][]byte{header(typeOut, huge), make([]byte, 1024)}, []int{1}, statusIOError},
		{"write a byte", [][]byte{header(typeOut, 0), {1}}, []int{1}, statusIOError},
		{"write with a buffer for a read", [][]byte{header(typeOut, 0)}, []int{512, 1}, statusIOError},
		{"short header", [][]byte{header(typeIn, 0)[:15]}, []int{512, 1}, statusIOError},
		{"no header", nil, []int{512, 1}, statusIOError},
		{"flush", [][]byte{header(typeFlush, 0)}, []int{1}, statusOK},
		{"unknown type", [][]byte{header(77, 0)}, []int{1}, statusUnsupported},
		{"secure erase", [][]byte{header(14, 0), segment(0, 8, 0)}, []int{1}, statusUnsupported},
		{"discard", [][]byte{header(typeDiscard, 0), segment(0, 8, 0)}, []int{1}, statusOK},
		{"discard nothing", [][]byte{header(typeDiscard, 0), segment(sectors, 0, 0)}, []int{1}, statusOK},
		{"discard without segments", [][]byte{header(typeDiscard, 0)}, []int{1}, statusIOError},
		{"discard half a segment", [][]byte{header(typeDiscard, 0), segment(0, 8, 0)[:8]}, []int{1}, statusIOError},
		{"discard with unmap", [][]byte{header(typeDiscard, 0), segment(0, 8, 1)}, []int{1}, statusUnsupported},
		{"discard over the end", [][]byte{header(typeDiscard, 0), segment(sectors-1, 2, 0)}, []int{1}, statusIOError},
		{"discard where sectors overflow", [][]byte{header(typeDiscard, 0), segment(huge, 2, 0)}, []int{1}, statusIOError},
		{"discard too much", [][]byte{header(typeDiscard, 0), segment(0, maxDiscardSectors+1, 0)}, []int{1}, statusIOError},
		{"discard too many", [][]byte{header(typeDiscard, 0), make([]byte, (maxSegments+1)*segmentSize)}, []int{1}, statusIOError},
		{"write zeroes", [][]byte{header(typeWriteZeroes, 0), segment(0, 8, 0)}, []int{1}, statusOK},
		{"write zeroes and unmap", [][]byte{header(typeWriteZeroes, 0), segment(0, 8, 1)}, []int{1}, statusOK},
		{"write zeroes with an unknown flag", [][]byte{header(typeWriteZeroes, 0), segment(0, 8, 2)}, []int{1}, statusUnsupported},
		{"serial number", [][]byte{header(typeGetID, 0)}, []int{20, 1}, statusOK},
	} {
		t.Run(test.name, func(t *testing.T) {
			path, contents := makeImage(t, sectors*SectorSize)
			d := newDisk(t, Config{Path: path})
			answer, _ := d.Queues[0].Do(test.out, test.in...)
			last := answer[len(answer)-1]
			if got := status(last[len(last)-1]); got != test.want {
				t.Errorf("status %d, want %d", got, test.want)
			}
			if test.want != statusOK {
				d.expect(0, contents)
			}
		})
	}
}

// TestNoPlaceForStatus tests that a chain that the device cannot answer takes
// it out of service, and that a reset brings it back.
func TestNoPlaceForStatus(t *testing.T) {
	path, contents := makeImage(t, 4096)
	d := newDisk(t, Config{Path: path, Queues: 2})
	q := d.Queues[1]
	q.Publish(q.Chain(virtiotest.Buffer{GPA: d.Memory.Put(header(typeIn, 0)), Len: headerSize}))
	q.Kick()
	if err := d.AwaitFail(); !strings.Contains(err.Error(), "status") || !strings.Contains(err.Error(), path) {
		t.Errorf("reason %q", err)
	}
	d.Reset()
	d.expect(0, contents)
}

func TestSerial(t *testing.T) {
	path, _ := makeImage(t, 4096)
	d := newDisk(t, Config{Path: path, Serial: "WD-1234"})
	for _, n := range []int{1, 7, 20, 64} {
		answer, written := d.Queues[0].Do([][]byte{header(typeGetID, 0)}, n, 1)
		want := make([]byte, MaxSerial)
		copy(want, "WD-1234")
		k := min(n, MaxSerial)
		if !bytes.Equal(answer[0][:k], want[:k]) || written != uint32(k)+1 {
			t.Errorf("%d bytes of serial number: %q, %d written", n, answer[0], written)
		}
	}
}

func TestReadOnly(t *testing.T) {
	path, contents := makeImage(t, 8192)
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	var w virtiotest.Warnings
	d := newDisk(t, Config{Path: path, ReadOnly: true, Warn: w.Add})
	if d.Features&FeatureReadOnly == 0 || d.Features&(FeatureDiscard|FeatureWriteZeroes) != 0 {
		t.Errorf("features %#x", d.Features)
	}
	if s := d.send(typeOut, 0, make([]byte, 512)); s != statusIOError {
		t.Errorf("write: status %d", s)
	}
	for _, kind := range []uint32{typeDiscard, typeWriteZeroes} {
		if s := d.send(kind, 0, segment(0, 1, 0)); s != statusUnsupported {
			t.Errorf("request of type %d: status %d", kind, s)
		}
	}
	d.mustSend(typeFlush, 0)
	d.expect(0, contents)
	if list := w.All(); len(list) > 0 {
		t.Errorf("the host was asked to write: %v", list)
	}
}

// TestRangeLimit tests how much a segment may cover, on a disk that has more.
func TestRangeLimit(t *testing.T) {
	path, _ := makeImage(t, 512)
	if err := os.Truncate(path, 2*maxDiscardSectors*SectorSize); err != nil {
		t.Fatal(err)
	}
	d := newDisk(t, Config{Path: path})
	for kind, most := range map[uint32]uint32{typeDiscard: maxDiscardSectors, typeWriteZeroes: maxZeroesSectors} {
		d.mustSend(kind, 0, segment(1, most, 0))
		if s := d.send(kind, 0, segment(1, most+1, 0)); s != statusIOError {
			t.Errorf("type %d, too much: status %d", kind, s)
		}
	}
}

func TestFeaturesNotAccepted(t *testing.T) {
	path, contents := makeImage(t, 8192)
	d := newDiskWith(t, Config{Path: path}, virtiotest.Options{Without: ^uint64(0) &^ (1 << 32)})
	for _, kind := range []uint32{typeDiscard, typeWriteZeroes} {
		if s := d.send(kind, 0, segment(0, 1, 0)); s != statusUnsupported {
			t.Errorf("request of type %d: status %d", kind, s)
		}
	}
	// Without flushes every write is durable.
	copy(contents, pattern(1024, 5))
	d.mustSend(typeOut, 0, contents[:1024])
	if yes, _ := durable(d); !yes {
		t.Error("a write was not durable")
	}
	d.expect(0, contents)
}

// durable tells whether the last request of the driver had to be, and how it was
// written.
func durable(d *disk) (bool, int) {
	d.Stop()
	defer d.Resume()
	s := d.device.services[0]
	r := s.free[len(s.free)-1]
	return r.durable, r.writeFlags()
}

func TestWritethrough(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		path, contents := makeImage(t, 8192)
		d := newDisk(t, Config{Path: path, engine: e})
		if got := d.Config(configWriteback, 1); got[0] != 1 {
			t.Errorf("writeback is %d at the start", got[0])
		}
		d.device.WriteConfig(configWriteback, []byte{0})
		if got := d.Config(configWriteback, 1); got[0] != 0 {
			t.Errorf("writeback is %d after it was switched off", got[0])
		}
		copy(contents[512:], pattern(1024, 5))
		d.mustSend(typeOut, 1, contents[512:1536])
		if yes, flags := durable(d); !yes || flags != unix.RWF_DSYNC {
			t.Error("a write was not durable")
		}
		d.mustSend(typeWriteZeroes, 0, segment(4, 2, 0))
		clear(contents[4*512 : 6*512])
		d.expect(0, contents)
		d.Reset()
		if got := d.Config(configWriteback, 1); got[0] != 1 {
			t.Errorf("writeback is %d after a reset", got[0])
		}
	})
}

func TestConfigSpace(t *testing.T) {
	path, _ := makeImage(t, 1<<20)
	d := newDevice(t, Config{Path: path, Queues: 3})
	want := []byte{
		0, 8, 0, 0, 0, 0, 0, 0, // 2048 sectors
		0, 0, 0, 0, // no size_max
		254, 0, 0, 0, // seg_max
		0, 0, 0, 0, // no geometry
		0, 2, 0, 0, // 512-byte blocks
		3, 0, 8, 0, 0, 0, 0, 0, // eight of them in a physical one
		1, 0, 3, 0, // writeback, queues
		0, 0, 0x20, 0, 16, 0, 0, 0, 8, 0, 0, 0, // discard
		0, 0, 2, 0, 16, 0, 0, 0, 1, 0, 0, 0, // write zeroes
		0, 0, 0, 0, // behind the end
	}
	got := make([]byte, len(want))
	d.ReadConfig(0, got)
	if !bytes.Equal(got, want) {
		t.Errorf("configuration\n%v, want\n%v", got, want)
	}
	for _, offset := range []uint64{0, 31, 33, 59, 60, 1 << 40, ^uint64(0)} {
		d.WriteConfig(offset, []byte{0})
		d.WriteConfig(offset, []byte{0, 0, 0, 0})
	}
	d.ReadConfig(0, got)
	if !bytes.Equal(got, want) {
		t.Errorf("writes of what cannot be written changed the configuration to\n%v", got)
	}
	if sizes := d.QueueSizes(); len(sizes) != 3 || sizes[2] != QueueSize || d.Features()&FeatureMultiQueue == 0 {
		t.Errorf("queues %v, features %#x", sizes, d.Features())
	}
}

func TestNewRefuses(t *testing.T) {
	path, _ := makeImage(t, 4096)
	odd, _ := makeImage(t, 1000)
	empty, _ := makeImage(t, 0)
	for _, test := range []struct {
		config Config
		want   string
	}{
		{Config{Path: path + "x"}, "no such file"},
		{Config{Path: t.TempDir()}, "neither a regular file nor a block device"},
		{Config{Path: "/dev/null"}, "neither a regular file nor a block device"},
		{Config{Path: odd}, "truncate -s %512"},
		{Config{Path: empty}, "truncate -s 10G"},
		{Config{Path: path, Serial: strings.Repeat("x", 21)}, "at most 20"},
		{Config{Path: path, Serial: "a\n"}, "ASCII"},
		{Config{Path: path, Queues: 65}, "want 1 to 64"},
		{Config{Path: path, Queues: -1}, "want 1 to 64"},
	} {
		d, err := New(test.config)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.config.Path) {
			t.Errorf("New(%+v) = %v, want %q in it", test.config, err, test.want)
		}
		if err == nil {
			d.Close()
		}
	}
	// Those that failed have freed the image.
	newDevice(t, Config{Path: path})
}

func TestManyQueues(t *testing.T) {
	path, contents := makeImage(t, 1<<20)
	d := newDisk(t, Config{Path: path, Queues: 4})
	for i, q := range d.Queues {
		answer, _ := q.Do([][]byte{header(typeIn, uint64(i)*16)}, 8192, 1)
		if !bytes.Equal(answer[0], contents[i*8192:(i+1)*8192]) {
			t.Errorf("queue %d: wrong data", i)
		}
	}
}

func TestSkippedQueues(t *testing.T) {
	path, contents := makeImage(t, 8192)
	d := newDiskWith(t, Config{Path: path, Queues: 3}, virtiotest.Options{Skip: map[int]bool{1: true, 2: true}})
	d.expect(0, contents)
	d.Stop()
	d.Resume()
	d.expect(0, contents)
}
