package user

import (
	"bytes"
	"sync"
)

// wordsSize is how much of what the program says is kept: the start, for a crash
// of a Go program says first what has happened.
const wordsSize = 4 << 10

// words keeps the start of what is written to it.
type words struct {
	mu   sync.Mutex
	kept []byte
}

// Write keeps what there is room for. It does not fail.
func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = append(w.kept, p[:min(len(p), wordsSize-len(w.kept))]...)
	return len(p), nil
}

func (w *words) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(bytes.TrimSpace(w.kept))
}
