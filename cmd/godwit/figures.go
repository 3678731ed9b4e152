package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/godwit-vmm/godwit/internal/metrics"
	"github.com/godwit-vmm/godwit/machine"
)

// figures are the metrics of a guest and of this process.
type figures struct {
	*metrics.Registry
	h *host

	mu   sync.Mutex
	file *metrics.File // nil for none
}

func newFigures(h *host) *figures {
	f := &figures{Registry: metrics.New(), h: h}
	f.Collect(metrics.Process)
	f.Collect(f.guest)
	return f
}

// guest gives the figures of the guest.
func (f *figures) guest(s *metrics.Sink) {
	s.Counter("godwit_console_written_bytes_total", "Bytes that the guest has written to its console.", float64(f.h.console.Written()))
	// A guest that does not run has none of the following.
	_ = f.h.vm.Use(func(m *machine.Machine) error {
		s.Gauge("godwit_memory_size_bytes", "Size of the guest's memory.", float64(m.Memory().Size()))
		s.Counter("godwit_bus_stray_total", "Accesses of the guest to ports and addresses without a device.", float64(m.Stray()))
		if b := m.Balloon(); b != nil {
			stats := b.Stats()
			s.Gauge("godwit_balloon_target_bytes", "Memory that the guest is asked to give up.", float64(stats.TargetMiB<<20))
			s.Gauge("godwit_balloon_actual_bytes", "Memory that the guest has given up.", float64(stats.ActualMiB<<20))
			s.Counter("godwit_balloon_reported_bytes_total", "Memory that the guest has reported as free.", float64(stats.Reported))
		}
		return nil
	})
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
