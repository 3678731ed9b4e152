package uffd

import (
	"testing"
	"time"
)

func TestStats(t *testing.T) {
	var s Server
	if st := s.Stats(); st != (Stats{}) {
		t.Errorf("at first %+v", st)
	}
	for i := range 1000 {
		s.stats.fault(time.Duration(i+1) * time.Microsecond)
	}
	st := s.Stats()
	if st.Faults != 1000 || st.Longest != time.Millisecond {
		t.Errorf("%+v", st)
	}
	for _, test := range []struct {
		name        string
		found, want time.Duration
	}{{"p50", st.P50, 500 * time.Microsecond}, {"p99", st.P99, 990 * time.Microsecond}} {
		if test.found < test.want || test.found > test.want*5/4 {
			t.Errorf("%s is %v, want %v to a quarter more", test.name, test.found, test.want)
		}
	}
}

// TestBuckets holds each duration against the bounds of its bucket.
func TestBuckets(t *testing.T) {
	for d := time.Duration(0); d >= 0 && d < 1<<62; d = d*9/8 + 1 {
		i := bucket(d)
		if d > bound(i) || i > 0 && d <= bound(i-1) {
			t.Fatalf("%d ns is in bucket %d, of up to %d ns", d, i, bound(i))
		}
	}
	if i := bucket(1<<63 - 1); i >= buckets {
		t.Errorf("the longest is in bucket %d", i)
	}
}
