package bench

import "testing"

func TestSummarize(t *testing.T) {
	for _, test := range []struct {
		name    string
		samples []float64
		want    Summary
	}{
		{"none", nil, Summary{}},
		{"one", []float64{7}, Summary{7, 7, 7, 7, 7}},
		{"two", []float64{4, 2}, Summary{2, 2.5, 3, 3.5, 4}},
		{"odd, unsorted", []float64{5, 1, 3, 2, 4}, Summary{1, 2, 3, 4, 5}},
		{"an outlier moves the maximum only", []float64{1, 2, 3, 4, 1000}, Summary{1, 2, 3, 4, 1000}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := summarize(test.samples); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestSummarizeKeepsOrder(t *testing.T) {
	samples := []float64{3, 1, 2}
	summarize(samples)
	if samples[0] != 3 || samples[1] != 1 || samples[2] != 2 {
		t.Errorf("samples are now %v: pairing needs their order", samples)
	}
}

func TestPairedCancelsDrift(t *testing.T) {
	floor := []float64{10, 20, 40, 80} // the machine gets slower and slower
	subject := []float64{11, 22, 44, 88}
	if got := paired(subject, floor, ratio); got < 1.0999 || got > 1.1001 {
		t.Errorf("ratio %v, want 1.1", got)
	}
	if got := paired(subject, floor[:1], difference); got != 1 {
		t.Errorf("difference over the common rounds %v, want 1", got)
	}
	if got := paired(subject, []float64{0}, ratio); got != 0 {
		t.Errorf("ratio to nothing %v, want 0, which JSON can hold", got)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.00012: "0.000", 0.0123: "0.012", 0.1: "0.100", 1.234: "1.23", 12.34: "12.3",
		99.94: "99.9", 123.4: "123", 24105: "24105", -4.321: "-4.32",
	} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %q, want %q", v, got, want)
		}
	}
}
