package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// timings writes when the phases of a start were over, in microseconds since
// main began. A nil *timings ignores everything.
type timings struct {
	mu    sync.Mutex
	file  *os.File
	start time.Time
}

// newTimings opens the file; "" means no timings.
func newTimings(path string) (*timings, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("--timings: %w", err)
	}
	return &timings{file: f, start: started}, nil
}

// started is when the program began, as near as Go code can tell.
var started = time.Now()

func (t *timings) mark(phase string) {
	if t == nil {
		return
	}
	us := time.Since(t.start).Microseconds()
	t.mu.Lock()
	defer t.mu.Unlock()
	line, _ := json.Marshal(struct {
		Phase string `json:"phase"`
		US    int64  `json:"us"`
	}{phase, us})
	// Timings are a help for people: a full disk does not stop a guest.
	_, _ = t.file.Write(append(line, '\n'))
}

func (t *timings) close() {
	if t != nil {
		_ = t.file.Close()
	}
}
