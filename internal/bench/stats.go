package bench

import (
	"math"
	"slices"
)

// Summary is the spread of a set of samples.
type Summary struct {
	Min    float64 `json:"min"`
	Q1     float64 `json:"q1"`
	Median float64 `json:"median"`
	Q3     float64 `json:"q3"`
	Max    float64 `json:"max"`
}

// summarize sorts a copy of samples. Without samples all fields are NaN-free
// zeros, so that the summary can be written as JSON.
func summarize(samples []float64) Summary {
	if len(samples) == 0 {
		return Summary{}
	}
	s := slices.Sorted(slices.Values(samples))
	return Summary{
		Min: s[0], Q1: quantile(s, 0.25), Median: quantile(s, 0.5), Q3: quantile(s, 0.75), Max: s[len(s)-1],
	}
}

// quantile interpolates between the two samples around the place q of a sorted
// set that is not empty.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := math.Floor(at)
	i := int(low)
	if i+1 >= len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-low)*(sorted[i+1]-sorted[i])
}

func median(samples []float64) float64 { return summarize(samples).Median }

// paired is the median over the rounds of f(a[i], b[i]). Comparing within a
// round cancels what changes slowly, such as the machine's other load.
func paired(a, b []float64, f func(a, b float64) float64) float64 {
	var all []float64
	for i := range min(len(a), len(b)) {
		all = append(all, f(a[i], b[i]))
	}
	return median(all)
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func difference(a, b float64) float64 { return a - b }
