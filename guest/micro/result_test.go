package micro

import (
	"errors"
	"math"
	"strings"
	"testing"
)

// TestHistogram has a program sort times into buckets, and compares with what the
// documentation says about them.
func TestHistogram(t *testing.T) {
	times := []uint64{0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 15, 16, 1000, 1023, 1024, 1279, 1280, 1 << 40, 1<<63 + 1<<62, math.MaxUint64}
	want := Histogram{8: 4, 9: 1, 10: 1, 11: 1, 12: 2, 13: 1, 15: 1, 16: 1, 39: 2, 40: 2, 41: 1, 160: 1, 254: 1, 255: 1}
	var d driver
	d.MovImm(R15, ResultStart)
	sum := uint64(0)
	for _, v := range times {
		d.MovImm(RAX, v)
		d.record()
		sum += v
	}
	stopForTest().emit(&d.Asm)
	code, err := d.Assemble()
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, program(t)(Program{Code: code}.ELF()))
	if got := g.next(); got != stopAccess {
		t.Fatalf("got %+v, want the stop", got)
	}
	r, err := ReadResult(g.ram[ResultStart : ResultStart+ResultSize])
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range r.Histogram {
		if n != want[i] {
			t.Errorf("bucket %d has %d times, want %d", i, n, want[i])
		}
	}
	if r.Latency != sum || r.Histogram.Count() != uint64(len(times)) {
		t.Errorf("%d times of %d in all", r.Histogram.Count(), r.Latency)
	}
}

func TestQuantile(t *testing.T) {
	var h Histogram
	if got := h.Quantile(0.5); got != 0 {
		t.Errorf("quantile of nothing is %g", got)
	}
	h[40], h[60], h[80] = 98, 1, 1 // 1024, 32 Ki and 1 Mi ticks, and a quarter more
	for _, test := range []struct{ q, want float64 }{
		{0, 1152}, {0.5, 1152}, {0.98, 1152}, {0.985, 36864}, {0.99, 36864}, {1, 1179648},
	} {
		if got := h.Quantile(test.q); got != test.want {
			t.Errorf("quantile %g is %g, want %g", test.q, got, test.want)
		}
	}
}

func TestResultErrors(t *testing.T) {
	if _, err := ReadResult(make([]byte, ResultSize-1)); err == nil {
		t.Error("no error about too few bytes")
	}
	if err := (&Result{Status: StatusDone}).Err(); err != nil {
		t.Error(err)
	}
	if err := (&Result{}).Err(); !errors.Is(err, ErrRunning) {
		t.Error(err)
	}
	for s := StatusNoDevice; s < statusCount; s++ {
		if err := (&Result{Status: s, Detail: 0x1234}).Err(); err == nil || !strings.Contains(err.Error(), statusText[s]) || statusText[s] == "" {
			t.Errorf("status %d: %v", s, err)
		}
	}
	if err := (&Result{Status: statusCount}).Err(); err == nil || !strings.Contains(err.Error(), "is none") {
		t.Error(err)
	}
}

func TestPattern(t *testing.T) {
	all := make([]byte, 100)
	Pattern(3, 8, all)
	part := make([]byte, 17)
	Pattern(3, 8+24, part)
	if string(part) != string(all[24:24+17]) {
		t.Error("the pattern depends on where one begins")
	}
	other := make([]byte, 100)
	Pattern(4, 8, other)
	if string(other) == string(all) {
		t.Error("the pattern does not depend on the seed")
	}
}
