package metrics

import (
	"bytes"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Process gives the figures of this process, with the names that all programs give
// them. It is for Registry.Collect. What the system does not tell is left out.
func Process(s *Sink) {
	var used unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &used) == nil {
		seconds := float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
		s.Counter("process_cpu_seconds_total", "Processor time spent, the guest's included, in seconds.", seconds)
	}
	if pages, ok := residentPages(); ok {
		s.Gauge("process_resident_memory_bytes", "Host memory in use, the guest's included.", float64(pages*os.Getpagesize()))
	}
	s.Gauge("go_goroutines", "Goroutines of the VMM.", float64(runtime.NumGoroutine()))
}

// residentPages is the second number of /proc/self/statm (proc(5)).
func residentPages() (int, bool) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	words := bytes.Fields(text)
	if len(words) < 2 {
		return 0, false
	}
	n, err := strconv.Atoi(string(words[1]))
	return n, err == nil
}
