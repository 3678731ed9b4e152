package net

import (
	"errors"
	"sync/atomic"
)

// The kinds of trouble that the operator is told about.
const (
	warnLost     uint32 = 1 << iota // the back end is gone
	warnDown                        // the interface of the host is down
	warnCapture                     // what passes cannot be captured
	warnPairs                       // the number of queue pairs cannot be changed
	warnRoom                        // it cannot be waited for room in the back end
	warnOffloads                    // the offloads cannot be changed
)

var errDown = errors.New("what the guest sends is lost: the host's interface is down; bring it up with: ip link set NAME up")

// warnings are given once for each kind, from any goroutine.
type warnings struct {
	warn  func(error)
	given atomic.Uint32
}

func (w *warnings) add(kind uint32, err error) {
	if w.given.Or(kind)&kind == 0 && w.warn != nil {
		w.warn(err)
	}
}
