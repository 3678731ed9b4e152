package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/godwit-vmm/godwit/internal/metrics"
)

// figures are the metrics of a guest and of this process.
type figures struct {
	*metrics.Registry
	h *host

	mu   sync.Mutex
	file *metrics.File // nil for none
}

// newFigures makes them. The caller holds h.mu.
func newFigures(h *host) *figures {
	f := &figures{Registry: h.vm.Metrics(), h: h}
	console, bus := h.console, h.events
	f.Collect(metrics.Process)
	f.Collect(func(s *metrics.Sink) {
		s.Counter("godwit_console_written_bytes_total", "Bytes that the guest has written to its console.", float64(console.Written()))
		e := bus.Stats()
		s.Counter("godwit_events_published_total", "Events that were published.", float64(e.Published))
		s.Counter("godwit_events_dropped_total", "Events that clients have missed, because they were too slow or came too late.", float64(e.Dropped))
		s.Gauge("godwit_events_clients", "Clients that listen to the events.", float64(e.Subscribers))
	})
	return f
}

// writeTo writes the figures to a file from time to time, and when the guest ends.
func (f *figures) writeTo(path string) error {
	file, err := metrics.OpenFile(path, f.Registry)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.file = file
	f.mu.Unlock()
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		<-f.h.vm.Done()
		stop()
	}()
	f.h.watching.Go(func() {
		file.Run(ctx, metrics.FlushInterval, func(err error) { fmt.Fprintf(os.Stderr, "godwit: metrics: %v\r\n", err) })
		// There is nothing to be done about it any more.
		_ = file.Close()
	})
	return nil
}

func (f *figures) flush() error {
	f.mu.Lock()
	file := f.file
	f.mu.Unlock()
	if file == nil {
		return errors.New("the metrics have no file: give one with PUT /metrics before the start")
	}
	return file.Flush()
}
