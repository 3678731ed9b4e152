// Package metrics counts what a machine does, and writes the figures in the text
// format of Prometheus and as the JSON object of Firecracker's metrics file.
//
// A figure is either kept here, in a Counter, Gauge or Histogram, whose updates are
// atomic and do not allocate; or it is kept by whoever owns it, and asked for when
// somebody wants to see it, by a function given to Collect. Nothing is global: a
// Registry has all figures of one machine.
package metrics

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

// Counter counts what only grows.
type Counter struct{ n atomic.Uint64 }

// Inc adds one.
func (c *Counter) Inc() { c.n.Add(1) }

// Add adds n.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Value is the count.
func (c *Counter) Value() uint64 { return c.n.Load() }

// Gauge is a figure that goes up and down.
type Gauge struct{ bits atomic.Uint64 }

// Set changes the figure.
func (g *Gauge) Set(v float64) { g.bits.Store(math.Float64bits(v)) }

// Add adds to the figure.
func (g *Gauge) Add(v float64) { addFloat(&g.bits, v) }

// Value is the figure.
func (g *Gauge) Value() float64 { return math.Float64frombits(g.bits.Load()) }

func addFloat(bits *atomic.Uint64, v float64) {
	for {
		old := bits.Load()
		if bits.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

// Histogram counts observations, of a time in seconds say, by size.
type Histogram struct {
	bounds []float64       // ascending
	counts []atomic.Uint64 // of those up to each bound, and of the rest
	sum    atomic.Uint64   // bits of a float64
}

func newHistogram(bounds []float64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// Observe counts v. What is not a number is not counted.
func (h *Histogram) Observe(v float64) {
	if math.IsNaN(v) {
		return
	}
	i := 0
	for i < len(h.bounds) && v > h.bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	addFloat(&h.sum, v)
}

// Latencies are bounds for times in seconds: three for each power of ten, from a
// microsecond to ten seconds.
func Latencies() []float64 {
	var bounds []float64
	for e := -6; e <= 0; e++ {
		unit := math.Pow10(e)
		bounds = append(bounds, unit, 2*unit, 5*unit)
	}
	return append(bounds, 10)
}

// Registry has the figures of one machine. All methods may be called from any
// goroutine.
//
// Names and labels that Prometheus does not allow, or that are taken, are mistakes
// of the program. They must not end a guest: the figure works, is left out when
// figures are written, and writing reports the error.
type Registry struct {
	mu         sync.Mutex
	figures    []sample // without their values
	collectors []func(*Sink)
}

// New makes an empty registry.
func New() *Registry { return new(Registry) }

// Counter registers a counter. Labels are names and values by turns; counters of
// the same name differ in the values. By convention the name ends in _total.
func (r *Registry) Counter(name, help string, labels ...string) *Counter {
	c := new(Counter)
	r.add(sample{name: name, help: help, kind: counter, labels: labels, counter: c})
	return c
}

// Gauge registers a gauge. For labels see Counter.
func (r *Registry) Gauge(name, help string, labels ...string) *Gauge {
	g := new(Gauge)
	r.add(sample{name: name, help: help, kind: gauge, labels: labels, gauge: g})
	return g
}

// Histogram registers a histogram with these upper bounds, ascending. For labels
// see Counter.
func (r *Registry) Histogram(name, help string, bounds []float64, labels ...string) *Histogram {
	h := newHistogram(slices.Clone(bounds))
	r.add(sample{name: name, help: help, kind: histogram, labels: labels, histogram: h})
	return h
}

func (r *Registry) add(s sample) {
	s.labels = slices.Clone(s.labels)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.figures = append(r.figures, s)
}

// Collect registers a function that is asked for figures whenever they are wanted.
// It may be called from several goroutines at once.
func (r *Registry) Collect(f func(*Sink)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collectors = append(r.collectors, f)
}

// Sink takes the figures of a function given to Collect, which must not keep it.
type Sink struct{ samples []sample }

// Counter gives the value of a counter. For labels see Registry.Counter.
func (s *Sink) Counter(name, help string, value float64, labels ...string) {
	s.samples = append(s.samples, sample{name: name, help: help, kind: counter, labels: labels, value: value})
}

// Gauge gives the value of a gauge. For labels see Registry.Counter.
func (s *Sink) Gauge(name, help string, value float64, labels ...string) {
	s.samples = append(s.samples, sample{name: name, help: help, kind: gauge, labels: labels, value: value})
}

// Histogram gives what a histogram has counted: how many observations were up to each
// of the bounds, which ascend, and above the one before, then how many were above all,
// and the sum of all. For labels see Registry.Counter.
func (s *Sink) Histogram(name, help string, bounds []float64, counts []uint64, sum float64, labels ...string) {
	s.samples = append(s.samples, sample{name: name, help: help, kind: histogram, labels: labels, bounds: bounds, counts: counts, value: sum})
}
