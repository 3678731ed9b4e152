package bench

import "fmt"

// Result is what a case measured.
type Result struct {
	Metrics []*Metric `json:"metrics"`
	// Parts break godwit's figure of the first metric down, in order.
	Parts []Part `json:"parts,omitempty"`
	// Notes are for the reader: what was left out, and why.
	Notes []string `json:"notes,omitempty"`
}

// Metric is one quantity, measured for every contestant.
type Metric struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	// Series has the floor first where there is one.
	Series  []*Series `json:"series"`
	Targets []Target  `json:"targets,omitempty"`

	goals []goal
}

// Series is the samples of one contestant, one a round.
type Series struct {
	Contestant string    `json:"contestant"`
	Samples    []float64 `json:"samples"`
	Summary    Summary   `json:"summary"`
	// Ratio and Difference compare with the first series, round by round.
	// They are absent in the first series itself.
	Ratio      *float64 `json:"ratio,omitempty"`
	Difference *float64 `json:"difference,omitempty"`
}

// Part is a share of a figure.
type Part struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"` // in the unit of the first metric
}

// Target is what a figure should be at most, and whether it is.
type Target struct {
	What  string  `json:"what"`
	Value float64 `json:"value"`
	Limit float64 `json:"limit"`
	Met   bool    `json:"met"`
}

// goal computes a target once all samples are there. ok is false when a
// contestant that it is about did not run.
type goal func(m *Metric) (t Target, ok bool)

// The contestants that more than one case has.
const (
	floorName  = "C floor"
	godwitName = "godwit"
)

// atMost is the goal that the median of a contestant does not exceed limit.
func atMost(contestant string, limit float64) goal {
	return func(m *Metric) (Target, bool) {
		s := m.find(contestant)
		if s == nil {
			return Target{}, false
		}
		v := s.Summary.Median
		return Target{What: fmt.Sprintf("%s <= %g %s", contestant, limit, m.Unit), Value: v, Limit: limit, Met: v <= limit}, true
	}
}

// atMostAbove is the goal that a contestant exceeds a reference by at most
// limit.
func atMostAbove(contestant, reference string, limit float64) goal {
	return func(m *Metric) (Target, bool) {
		s, r := m.find(contestant), m.find(reference)
		if s == nil || r == nil {
			return Target{}, false
		}
		v := paired(s.Samples, r.Samples, difference)
		return Target{What: fmt.Sprintf("%s <= %s + %g %s", contestant, reference, limit, m.Unit), Value: v, Limit: limit, Met: v <= limit}, true
	}
}

// atMostTimes is the goal that a contestant is at most limit times the best of
// the references.
func atMostTimes(contestant string, limit float64, references ...string) goal {
	return func(m *Metric) (Target, bool) {
		s := m.find(contestant)
		var best *Series
		for _, name := range references {
			if r := m.find(name); r != nil && (best == nil || r.Summary.Median < best.Summary.Median) {
				best = r
			}
		}
		if s == nil || best == nil {
			return Target{}, false
		}
		v := paired(s.Samples, best.Samples, ratio)
		return Target{What: fmt.Sprintf("%s <= %g x %s", contestant, limit, best.Contestant), Value: v, Limit: limit, Met: v <= limit}, true
	}
}

func (m *Metric) find(contestant string) *Series {
	for _, s := range m.Series {
		if s.Contestant == contestant {
			return s
		}
	}
	return nil
}

// conclude fills in all that follows from the samples.
func (r *Result) conclude() {
	for _, m := range r.Metrics {
		for i, s := range m.Series {
			s.Summary = summarize(s.Samples)
			if i > 0 {
				by := paired(s.Samples, m.Series[0].Samples, ratio)
				off := paired(s.Samples, m.Series[0].Samples, difference)
				s.Ratio, s.Difference = &by, &off
			}
		}
		for _, g := range m.goals {
			if t, ok := g(m); ok {
				m.Targets = append(m.Targets, t)
			}
		}
	}
}
