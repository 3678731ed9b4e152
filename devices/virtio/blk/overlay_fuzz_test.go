package blk

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// sign makes the checksum of a header right.
func sign(header []byte) {
	binary.LittleEndian.PutUint32(header[headerChecksum:], crc32.Checksum(header[:headerChecksum], castagnoli()))
}

// FuzzOverlay has files that somebody else made instead of overlays. They are
// refused, or they are a disk of the size of the base that can be read and
// written. What a header is read as makes the same header again.
func FuzzOverlay(f *testing.F) {
	const size = 3*clusterSize + SectorSize
	base, _ := makeImage(f, size)
	path := filepath.Join(f.TempDir(), "overlay")
	m, err := openImage(&Config{Path: base, ReadOnly: true})
	if err != nil {
		f.Fatal(err)
	}
	id, err := identify(m, size)
	if err != nil {
		f.Fatal(err)
	}
	if err := m.close(); err != nil {
		f.Fatal(err)
	}
	l := layoutFor(size)
	good := make([]byte, l.dataAt)
	copy(good, id.encode())
	mem := virtiotest.NewMemory(f, 4<<20)
	// What changes of a good file: bytes from an offset on, a second time in
	// the bitmaps, and where it ends.
	f.Add(uint16(0), []byte{}, uint16(l.writtenAt), []byte{0x0f}, uint32(l.end()), true)
	f.Add(uint16(0), []byte{}, uint16(l.durableAt), []byte{5}, uint32(l.end()), true)
	f.Add(uint16(headerDisk), []byte{0, 0, 0, 0, 0, 0, 0, 0x80}, uint16(l.writtenAt), []byte{}, uint32(l.end()), true)
	f.Add(uint16(headerPathLen), []byte{0xff, 0xff, 0xff, 0xff}, uint16(sessionAt), []byte{1}, uint32(l.end()), true)
	f.Add(uint16(headerVersion), []byte{9}, uint16(0), []byte{}, uint32(overlayBlock), false)
	f.Add(uint16(headerKind), []byte{1}, uint16(l.writtenAt), []byte{0x1f}, uint32(100), true)
	f.Fuzz(func(t *testing.T, at uint16, p []byte, second uint16, q []byte, end uint32, signed bool) {
		file := bytes.Clone(good)
		copy(file[int(at)%len(file):], p)
		copy(file[int(second)%len(file):], q)
		if signed {
			sign(file[:overlayBlock])
		}
		if of, err := decodeHeader(file[:overlayBlock]); err == nil && !bytes.Equal(of.encode(), file[:overlayBlock]) {
			t.Fatalf("header of %v is not what it was made of", of)
		}
		writeFile(t, path, file)
		if err := os.Truncate(path, int64(end%(1<<20))); err != nil {
			t.Fatal(err)
		}
		device, err := New(Config{Path: base, Overlay: path, engine: enginePool})
		if err != nil {
			return
		}
		d := &disk{virtiotest.Start(t, device, virtiotest.Options{Memory: mem.For(t)}), t, device}
		data := pattern(clusterSize+1024, uint64(at))
		d.mustSend(typeOut, 100, data)
		d.mustSend(typeFlush, 0)
		d.expect(100, data)
		if _, s := d.read(0, size); s != statusOK {
			t.Errorf("read of all: status %d", s)
		}
		d.end()
		if info, err := os.Stat(path); err != nil || uint64(info.Size()) != l.end() {
			t.Errorf("the overlay has another size: %v", err)
		}
	})
}
