// Package pcap writes what passes through network interfaces to a file that
// Wireshark and tcpdump read: the pcapng format (IETF draft-ietf-opsawg-pcapng),
// with a direction and a time in nanoseconds for each frame.
package pcap

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// SnapLen is how many bytes of a frame are kept at most: more than the largest
// has.
const SnapLen = 1 << 17

// Direction says which way a frame went, as seen from the guest.
type Direction uint32

// The directions, with the values of the format (§4.3.1, epb_flags).
const (
	In  Direction = 1
	Out Direction = 2
)

// Blocks and options of the format (§4).
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6

	byteOrderMagic = 0x1a2b3c4d
	linkEthernet   = 1

	optionEnd        = 0
	optionFlags      = 2 // epb_flags
	optionName       = 2 // if_name
	optionResolution = 9 // if_tsresol
	nanoseconds      = 9 // 10^-9 seconds
)

// bufferSize is how much is collected before it is written.
const bufferSize = 256 << 10

// File is a capture file. Its methods, and those of its interfaces, may be
// called from any goroutine.
type File struct {
	mu         sync.Mutex
	file       *os.File
	out        *bufio.Writer
	interfaces uint32
	closed     bool
	block      []byte // the header or the end of the block that is written
}

// Interface is a network interface of a capture file.
type Interface struct {
	file *File
	id   uint32
}

// Create makes a capture file, and empties it if there is one. Only its owner
// may read it, for what passes can be secret.
func Create(path string) (*File, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("capture file: %w", err)
	}
	f := &File{file: file, out: bufio.NewWriterSize(file, bufferSize)}
	f.start(blockSection, 28)
	f.put32(byteOrderMagic)
	f.put16(1) // version 1.0
	f.put16(0)
	f.put32(0xffff_ffff) // a section of unknown length
	f.put32(0xffff_ffff)
	f.put32(28)
	// Written at once, so that a file that cannot be written is seen now.
	if err := errors.Join(f.write(f.block), f.out.Flush()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return f, nil
}

// Interface adds an interface with the given name.
func (f *File) Interface(name string) (*Interface, error) {
	if len(name) > 255 {
		return nil, fmt.Errorf("capture: interface name of %d bytes, want at most 255", len(name))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	length := uint32(16 + 4 + pad(len(name)) + 8 + 4 + 4)
	f.start(blockInterface, length)
	f.put16(linkEthernet)
	f.put16(0)
	f.put32(SnapLen)
	f.put16(optionName)
	f.put16(uint16(len(name)))
	f.block = append(f.block, name...)
	f.block = append(f.block, make([]byte, pad(len(name))-len(name))...)
	f.put16(optionResolution)
	f.put16(1)
	f.put32(nanoseconds) // one byte and padding
	f.put32(optionEnd)
	f.put32(length)
	if err := f.write(f.block); err != nil {
		return nil, err
	}
	f.interfaces++
	return &Interface{f, f.interfaces - 1}, nil
}

// Write adds a frame, with its Ethernet header.
func (i *Interface) Write(d Direction, frame []byte) error {
	f := i.file
	f.mu.Lock()
	defer f.mu.Unlock()
	now := uint64(time.Now().UnixNano())
	kept := frame[:min(len(frame), SnapLen)]
	length := uint32(28 + pad(len(kept)) + 8 + 4 + 4)
	f.start(blockPacket, length)
	f.put32(i.id)
	f.put32(uint32(now >> 32))
	f.put32(uint32(now))
	f.put32(uint32(len(kept)))
	f.put32(uint32(len(frame)))
	if err := errors.Join(f.write(f.block), f.write(kept)); err != nil {
		return err
	}
	f.block = f.block[:0]
	for range pad(len(kept)) - len(kept) {
		f.block = append(f.block, 0)
	}
	f.put16(optionFlags)
	f.put16(4)
	f.put32(uint32(d))
	f.put32(optionEnd)
	f.put32(length)
	return f.write(f.block)
}

// Flush writes what has been collected.
func (i *Interface) Flush() error {
	i.file.mu.Lock()
	defer i.file.mu.Unlock()
	return i.file.flush()
}

// Close writes what has been collected and closes the file. Frames that come
// later are refused.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	return errors.Join(f.flush(), f.file.Close())
}

func (f *File) flush() error {
	if err := f.out.Flush(); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	return nil
}

// write adds p. After an error the same error comes again.
func (f *File) write(p []byte) error {
	if f.closed {
		return fmt.Errorf("capture: %w", os.ErrClosed)
	}
	if _, err := f.out.Write(p); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	return nil
}

// start begins a block of the given length.
func (f *File) start(kind, length uint32) {
	f.block = f.block[:0]
	f.put32(kind)
	f.put32(length)
}

func (f *File) put16(x uint16) { f.block = binary.LittleEndian.AppendUint16(f.block, x) }
func (f *File) put32(x uint32) { f.block = binary.LittleEndian.AppendUint32(f.block, x) }

// pad rounds n up to a multiple of 4.
func pad(n int) int { return (n + 3) &^ 3 }
