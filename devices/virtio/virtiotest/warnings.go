package virtiotest

import (
	"slices"
	"sync"
)

// Warnings collects what a device warns about: Add is its Warn.
type Warnings struct {
	mu   sync.Mutex
	list []error
}

// Add adds a warning. It may be called from any goroutine.
func (w *Warnings) Add(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, err)
}

// All are the warnings so far.
func (w *Warnings) All() []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.list)
}
