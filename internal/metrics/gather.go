package metrics

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// kind is how Prometheus calls it.
type kind string

const (
	counter   kind = "counter"
	gauge     kind = "gauge"
	histogram kind = "histogram"
)

// sample is a figure at one moment, or one that is registered and has its value
// elsewhere.
type sample struct {
	name, help string
	kind       kind
	labels     []string // names and values by turns

	counter   *Counter
	gauge     *Gauge
	histogram *Histogram

	// value of a histogram is the sum of what was observed.
	value float64
	// bounds and counts of a histogram are those of its buckets, each count
	// without the others; that behind the last bound is of the rest.
	bounds []float64
	counts []uint64
}

// read takes the value of a registered figure.
func (s *sample) read() {
	switch {
	case s.counter != nil:
		s.value = float64(s.counter.Value())
	case s.gauge != nil:
		s.value = s.gauge.Value()
	case s.histogram != nil:
		s.counts = make([]uint64, len(s.histogram.counts))
		for i := range s.counts {
			s.counts[i] = s.histogram.counts[i].Load()
		}
		s.bounds, s.value = s.histogram.bounds, math.Float64frombits(s.histogram.sum.Load())
	}
}

// gather takes all figures, by name and label values, those of one name together.
// With an error come those that are right.
func (r *Registry) gather() ([]sample, error) {
	r.mu.Lock()
	sink := Sink{slices.Clone(r.figures)}
	collectors := slices.Clone(r.collectors)
	r.mu.Unlock()
	for i := range sink.samples {
		sink.samples[i].read()
	}
	for _, collect := range collectors {
		collect(&sink)
	}
	slices.SortStableFunc(sink.samples, func(a, b sample) int {
		if c := strings.Compare(a.name, b.name); c != 0 {
			return c
		}
		return slices.Compare(a.labels, b.labels)
	})
	var errs []error
	right := sink.samples[:0]
	for _, s := range sink.samples {
		err := s.check()
		if len(right) > 0 && err == nil {
			err = s.fits(&right[len(right)-1])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("metric %q %q: %w", s.name, s.labels, err))
			continue
		}
		right = append(right, s)
	}
	return right, errors.Join(errs...)
}

// check checks a sample by itself.
func (s *sample) check() error {
	if !validName(s.name, true) {
		return errors.New("this is no name for a metric")
	}
	if len(s.labels)%2 != 0 {
		return errors.New("a label has no value")
	}
	for i := 0; i < len(s.labels); i += 2 {
		name := s.labels[i]
		switch {
		case !validName(name, false), strings.HasPrefix(name, "__"), s.kind == histogram && name == "le":
			return fmt.Errorf("%q is no name for a label", name)
		case slices.Contains(names(s.labels[:i]), name):
			return fmt.Errorf("label %q is there twice", name)
		}
	}
	if s.kind == histogram && (!increasing(s.bounds) || len(s.counts) != len(s.bounds)+1) {
		return fmt.Errorf("bounds %v of %d counts are not ascending numbers, one less than counts", s.bounds, len(s.counts))
	}
	return nil
}

// fits checks a sample against the one before it.
func (s *sample) fits(before *sample) error {
	switch {
	case s.name != before.name:
		return nil
	case s.kind != before.kind:
		return fmt.Errorf("it is a %s and a %s", before.kind, s.kind)
	case slices.Equal(s.labels, before.labels):
		return errors.New("it is there twice")
	}
	return nil
}

// names are every second word.
func names(labels []string) []string {
	var n []string
	for i := 0; i < len(labels); i += 2 {
		n = append(n, labels[i])
	}
	return n
}

func increasing(bounds []float64) bool {
	for i, b := range bounds {
		if math.IsNaN(b) || math.IsInf(b, 0) || i > 0 && b <= bounds[i-1] {
			return false
		}
	}
	return true
}

// validName checks the name of a metric or of a label, which has no colons.
func validName(name string, colons bool) bool {
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_', colons && c == ':':
		case i > 0 && '0' <= c && c <= '9':
		default:
			return false
		}
	}
	return name != ""
}
