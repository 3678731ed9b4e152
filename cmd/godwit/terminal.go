package main

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// terminal is a window in raw mode, in which every key goes to the guest.
type terminal struct {
	fd    int
	saved *term.State
	once  sync.Once
}

// background tells whether f is a terminal that belongs to another job: reading
// it, or changing its mode, would stop this process (SIGTTIN, SIGTTOU).
func background(f *os.File) bool {
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil && group != unix.Getpgrp()
}

// openTerminal puts f into raw mode if it is a terminal in the foreground; else
// it returns nil.
func openTerminal(f *os.File) (*terminal, error) {
	fd := int(f.Fd())
	if !term.IsTerminal(fd) || background(f) {
		return nil, nil
	}
	saved, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return &terminal{fd: fd, saved: saved}, nil
}

// restore gives the window back as it was. It may be called more than once,
// and on nil.
func (t *terminal) restore() {
	if t == nil {
		return
	}
	t.once.Do(func() { _ = term.Restore(t.fd, t.saved) })
}

// escape watches what is typed for the sequences that are godwit's own:
// Ctrl-a x quits, Ctrl-a Ctrl-a is Ctrl-a for the guest.
type escape struct{ pending bool }

const ctrlA = 0x01

// filter returns what of the typed bytes is for the guest, and whether the user
// wants to quit.
func (e *escape) filter(in []byte) (out []byte, quit bool) {
	out = make([]byte, 0, len(in)+1)
	for _, b := range in {
		switch {
		case !e.pending && b == ctrlA:
			e.pending = true
			continue
		case e.pending && (b == 'x' || b == 'X'):
			return out, true
		case e.pending && b != ctrlA:
			out = append(out, ctrlA)
		}
		e.pending = false
		out = append(out, b)
	}
	return out, false
}

// tilde watches what is typed for the sequence of ssh(1) that breaks a connection
// off: ~ . at the start of a line. There ~ ~ is one ~ for the guest.
type tilde struct {
	inLine  bool // something was typed since the last end of line
	pending bool
}

// filter returns what of the typed bytes is for the guest, and whether the user
// wants to quit.
func (e *tilde) filter(in []byte) (out []byte, quit bool) {
	out = make([]byte, 0, len(in)+1)
	for _, b := range in {
		switch {
		case !e.inLine && !e.pending && b == '~':
			e.pending = true
			continue
		case e.pending && b == '.':
			return out, true
		case e.pending && b != '~':
			out = append(out, '~')
		}
		e.pending = false
		e.inLine = b != '\r' && b != '\n'
		out = append(out, b)
	}
	return out, false
}
