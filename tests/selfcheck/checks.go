package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// memory is a piece of it that has a pattern, another one after each round.
type memory struct {
	words []uint64
	seed  uint64
}

func newMemory(seed uint64) *memory {
	m := &memory{words: make([]uint64, 8<<20/8), seed: seed << 32}
	m.fill()
	return m
}

func (m *memory) fill() {
	x := m.seed
	for i := range m.words {
		x = x*6364136223846793005 + 1442695040888963407
		m.words[i] = x
	}
}

func (m *memory) round() error {
	x := m.seed
	for i, w := range m.words {
		x = x*6364136223846793005 + 1442695040888963407
		if w != x {
			return fmt.Errorf("word %d is %#x, want %#x", i, w, x)
		}
	}
	m.seed++
	m.fill()
	return nil
}

// timer looks whether time goes forward, and timers do not fire early.
type timer struct {
	last time.Time // with the monotonic clock
}

func newTimer() *timer { return &timer{last: time.Now()} }

func (t *timer) round() error {
	const wait = 10 * time.Millisecond
	began := time.Now()
	fired := <-time.After(wait)
	now := time.Now()
	switch {
	case began.Sub(t.last) < 0 || now.Sub(began) < 0:
		return fmt.Errorf("time went back: %v, %v, %v", t.last, began, now)
	case fired.Sub(began) < wait:
		return fmt.Errorf("a timer of %v fired after %v", wait, fired.Sub(began))
	}
	t.last = now
	return nil
}

// tcp is a connection that stays, over which numbers go back and forth.
type tcp struct {
	conn net.Conn
	n    uint64
}

func newTCP() (*tcp, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
		}
		fmt.Fprintln(os.Stderr, "echo ended:", err)
	}()
	c, err := net.Dial("tcp4", l.Addr().String())
	return &tcp{conn: c}, err
}

func (t *tcp) round() error {
	t.n++
	sent := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, t.n), 1000)
	if _, err := t.conn.Write(sent); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(t.conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return errors.New("what came back is not what was sent")
	}
	return nil
}

// disk is a file of blocks, each with a checksum of its own and the number of the
// round in which it was written.
type disk struct {
	f       *os.File
	written [64]uint64
	n       uint64
}

const blockSize = 64 << 10

func newDisk(path string) (*disk, error) {
	f, err := os.Create(path)
	return &disk{f: f}, err
}

// round writes some blocks, sometimes durably, drops what the kernel has in memory
// of the file and reads another one.
func (d *disk) round() error {
	d.n++
	for i := range 4 {
		block := (d.n*7 + uint64(i)*13) % uint64(len(d.written))
		if _, err := d.f.WriteAt(content(block, d.n), int64(block*blockSize)); err != nil {
			return err
		}
		d.written[block] = d.n
	}
	if d.n%4 == 0 {
		if err := d.f.Sync(); err != nil {
			return err
		}
		const dontNeed = 4 // POSIX_FADV_DONTNEED
		if _, _, errno := syscall.Syscall6(syscall.SYS_FADVISE64, d.f.Fd(), 0, 0, dontNeed, 0, 0); errno != 0 {
			return errno
		}
	}
	block := d.n * 31 % uint64(len(d.written))
	if d.written[block] == 0 {
		return nil
	}
	got := make([]byte, blockSize)
	if _, err := d.f.ReadAt(got, int64(block*blockSize)); err != nil {
		return err
	}
	if want := content(block, d.written[block]); !bytes.Equal(got, want) {
		return fmt.Errorf("block %d, written in round %d, begins with %x, want %x", block, d.written[block], got[:40], want[:40])
	}
	return nil
}

// content is a block's: numbers, and their checksum over and over.
func content(block, n uint64) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, blockSize), block)
	b = binary.LittleEndian.AppendUint64(b, n)
	sum := sha256.Sum256(b)
	for len(b) < blockSize {
		b = append(b, sum[:min(len(sum), blockSize-len(b))]...)
	}
	return b
}
