package devices

import (
	"encoding/json"
	"reflect"
	"sync"
	"testing"
)

// wire is a Line that remembers.
type wire struct {
	mu    sync.Mutex
	level bool
	rises int
}

func (w *wire) Set(asserted bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if asserted && !w.level {
		w.rises++
	}
	w.level = asserted
}

func (w *wire) high() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.level
}

// edges returns how often the line has risen since the last call.
func (w *wire) edges() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.rises
	w.rises = 0
	return n
}

func in8(h Handler, offset uint64) byte {
	var b [1]byte
	h.Read(offset, b[:])
	return b[0]
}

func out8(h Handler, offset uint64, b byte) { h.Write(offset, []byte{b}) }

func in32(h Handler, offset uint64) uint32 {
	var b [4]byte
	h.Read(offset, b[:])
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func out32(h Handler, offset uint64, v uint32) {
	h.Write(offset, []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)})
}

// play makes the accesses that a program describes: four bytes each for kind
// and size, offset, and value.
func play(h Handler, window uint64, program []byte) {
	for ; len(program) >= 4; program = program[4:] {
		size := 1 << (program[0] >> 1 & 3)
		offset := uint64(program[1]) % window
		var data [8]byte
		for i := range data {
			data[i] = program[2+i%2]
		}
		if program[0]&1 == 0 {
			h.Read(offset, data[:size])
		} else {
			h.Write(offset, data[:size])
		}
	}
}

// roundTrip checks that a state survives encoding, and that a second device
// that takes it over saves the same.
func roundTrip[S any](t *testing.T, save func() S, restored interface {
	Restore(S) error
	Save() S
}) {
	t.Helper()
	want := save()
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var decoded S
	if err := json.Unmarshal(text, &decoded); err != nil {
		t.Fatal(err)
	}
	if err := restored.Restore(decoded); err != nil {
		t.Fatalf("restore: %v", err)
	}
	if got := restored.Save(); !reflect.DeepEqual(got, want) {
		t.Fatalf("saved again: %+v, want %+v", got, want)
	}
}

func noAllocs(t *testing.T, what string, f func()) {
	t.Helper()
	if n := testing.AllocsPerRun(200, f); n != 0 {
		t.Errorf("%s allocates %v times", what, n)
	}
}
