package vmlinux

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/bootloader"
	"github.com/godwit-vmm/godwit/bootloader/internal/kerneltest"
	"github.com/pierrec/lz4/v4"
)

// content is several LZ4 blocks long and does not repeat at once.
func content() []byte {
	p := make([]byte, 20<<20)
	for i := range p {
		p[i] = byte(i >> 8 * i)
	}
	return p
}

func compressGzip(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// compressLZ4 makes what the kernel build makes: the legacy format, with the
// size behind it.
func compressLZ4(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := lz4.NewWriter(&b)
	if err := w.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return withSize(b.Bytes(), uint32(len(p)))
}

func withSize(p []byte, size uint32) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(p), size)
}

func bzImage(payload []byte) *bootloader.File {
	image := kerneltest.BzImage(payload)
	return &bootloader.File{Name: "vmlinuz", Size: int64(len(image)), Content: bytes.NewReader(image)}
}

func TestExtract(t *testing.T) {
	want := content()
	for name, payload := range map[string][]byte{
		"gzip": compressGzip(t, want),
		"LZ4":  compressLZ4(t, want),
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			n, err := Extract(&got, bzImage(payload))
			if err != nil {
				t.Fatal(err)
			}
			if n != int64(len(want)) || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%d bytes that differ, want %d", n, len(want))
			}
		})
	}
}

func TestExtractErrors(t *testing.T) {
	small := []byte("a small kernel")
	lz := compressLZ4(t, small)
	lz = lz[:len(lz)-sizeField]
	gz := compressGzip(t, small)
	tests := []struct {
		name    string
		payload []byte
		want    string
	}{
		{"no payload", nil, "no compressed payload"},
		{"short", []byte{1, 2}, "too short"},
		{"zstd", withSize([]byte("\x28\xb5\x2f\xfdxxxx"), 100), "zstd: compression not supported"},
		{"unknown", withSize([]byte("????????"), 100), "compression not supported"},
		{"claims nothing", withSize(lz, 0), "decompresses to 0 bytes"},
		{"claims too much", withSize(lz, MaxSize+1), "the limit is 536870912"},
		{"more than claimed", withSize(lz, 5), "want 5 bytes, found more"},
		{"less than claimed", withSize(lz, 50), "want 50 bytes, found 14"},
		{"cut", withSize(gz[:len(gz)-6], 14), "decompress"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Extract(io.Discard, bzImage(tt.payload))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "vmlinuz") {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if strings.Contains(tt.want, ErrCompression.Error()) && !errors.Is(err, ErrCompression) {
				t.Errorf("error %v does not wrap ErrCompression", err)
			}
		})
	}
}

func TestExtractPayloadOutsideTheFile(t *testing.T) {
	image := kerneltest.BzImage(compressGzip(t, []byte("kernel")))
	binary.LittleEndian.PutUint32(image[kerneltest.PayloadOffset:], 1<<31)
	_, err := Extract(io.Discard, &bootloader.File{Name: "vmlinuz", Size: int64(len(image)), Content: bytes.NewReader(image)})
	if err == nil || !strings.Contains(err.Error(), "does not lie in") {
		t.Errorf("error %v", err)
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(compressGzip(f, []byte("kernel")))
	f.Add(compressLZ4(f, []byte("kernel")))
	f.Fuzz(func(t *testing.T, payload []byte) {
		n, err := Extract(io.Discard, bzImage(payload))
		if n > MaxSize+1 || err == nil && n == 0 {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}
