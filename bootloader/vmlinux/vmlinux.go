// Package vmlinux takes the uncompressed kernel out of a bzImage, so that the
// work of decompressing is done once when a kernel is prepared and not at each
// boot. It stands apart from package bootloader to keep the decompressors out
// of programs that only boot.
package vmlinux

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/godwit-vmm/godwit/bootloader"
	"github.com/pierrec/lz4/v4"
)

// MaxSize is the largest kernel that Extract decompresses, in bytes. Kernels
// with everything built in stay below a fifth of it.
const MaxSize = 512 << 20

// sizeField is the decompressed size behind the compressed data.
const sizeField = 4

// ErrCompression is wrapped by the error about a kernel that is compressed in
// a way this package cannot undo. The bzImage itself can still be booted.
var ErrCompression = errors.New("compression not supported")

// Extract decompresses the kernel inside a bzImage to w: an ELF file that
// [bootloader.Load] takes. It returns the number of bytes written. Kernels
// compressed with gzip or LZ4 can be extracted; see [ErrCompression]. After an
// error w may have got a part of the kernel.
func Extract(w io.Writer, bzImage *bootloader.File) (int64, error) {
	payload, err := bootloader.Payload(bzImage)
	if err != nil {
		return 0, fmt.Errorf("kernel %w", err)
	}
	n, err := extract(w, payload)
	if err != nil {
		return n, fmt.Errorf("kernel %s (%d bytes): payload of %d bytes: %w", bzImage.Name, bzImage.Size, payload.Size(), err)
	}
	return n, nil
}

func extract(w io.Writer, payload *io.SectionReader) (int64, error) {
	want, err := decompressedSize(payload)
	if err != nil {
		return 0, err
	}
	r, err := decompressor(payload)
	if err != nil {
		return 0, err
	}
	// One byte more than announced tells an excess apart.
	n, err := io.Copy(w, io.LimitReader(r, want+1))
	if err != nil {
		return n, fmt.Errorf("decompress: %w", err)
	}
	if n != want {
		return n, fmt.Errorf("decompress: want %d bytes, found %s", want, found(n, want))
	}
	return n, nil
}

func found(n, want int64) string {
	if n > want {
		return "more"
	}
	return fmt.Sprint(n)
}

// decompressedSize reads the size that the kernel build puts behind the
// compressed data; gzip has the same field as a part of its format.
func decompressedSize(payload *io.SectionReader) (int64, error) {
	var p [sizeField]byte
	if payload.Size() <= sizeField {
		return 0, errors.New("too short")
	}
	if _, err := payload.ReadAt(p[:], payload.Size()-sizeField); err != nil {
		return 0, fmt.Errorf("read the decompressed size: %w", err)
	}
	size := int64(binary.LittleEndian.Uint32(p[:]))
	if size == 0 || size > MaxSize {
		return 0, fmt.Errorf("decompresses to %d bytes: the limit is %d", size, MaxSize)
	}
	return size, nil
}

// formats are the compressions that kernels are built with.
var formats = []struct {
	name, magic string
	open        func(payload *io.SectionReader) (io.Reader, error)
}{
	{"gzip", "\x1f\x8b", openGzip},
	{"LZ4", "\x02\x21\x4c\x18", openLZ4},
	{"zstd", "\x28\xb5\x2f\xfd", nil},
	{"xz", "\xfd7zXZ\x00", nil},
	{"LZMA", "\x5d\x00\x00", nil},
	{"LZO", "\x89LZO", nil},
	{"bzip2", "BZh", nil},
}

func decompressor(payload *io.SectionReader) (io.Reader, error) {
	var head [8]byte
	if _, err := payload.ReadAt(head[:min(int64(len(head)), payload.Size())], 0); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	for _, f := range formats {
		if !bytes.HasPrefix(head[:], []byte(f.magic)) {
			continue
		}
		if f.open == nil {
			return nil, fmt.Errorf("%s: %w; boot the bzImage instead", f.name, ErrCompression)
		}
		return f.open(payload)
	}
	return nil, fmt.Errorf("first bytes % x: %w; boot the bzImage instead", head, ErrCompression)
}

func openGzip(payload *io.SectionReader) (io.Reader, error) {
	r, err := gzip.NewReader(payload)
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	// A second stream is no part of the kernel.
	r.Multistream(false)
	return r, nil
}

// openLZ4 reads the legacy LZ4 format, which knows no end but the end of the
// file: the size field behind it must not look like one more block.
func openLZ4(payload *io.SectionReader) (io.Reader, error) {
	return lz4.NewReader(io.NewSectionReader(payload, 0, payload.Size()-sizeField)), nil
}
