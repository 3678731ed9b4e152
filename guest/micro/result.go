package micro

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Offsets from ResultStart of what the programs that drive devices leave there
// in addition. ReadResult knows them all.
const (
	resultStatus     = 0x18
	resultErrors     = 0x20
	resultMismatches = 0x28
	resultBytes      = 0x30
	resultKicks      = 0x38
	resultDetail     = 0x40
	resultFeatures   = 0x48
	resultLatency    = 0x50
	resultHistogram  = 0x400
)

// ResultSize is how many bytes from ResultStart ReadResult looks at. The stack
// has the rest of the page.
const ResultSize = resultHistogram + 8*histogramBuckets

// Status is how far a program that drives a device got.
type Status uint64

// The states of a program: not at its end, at its end, or ended early for one
// of the reasons that follow.
const (
	StatusRunning Status = iota
	StatusDone
	StatusNoDevice
	StatusNoRegions
	StatusFeatures
	StatusQueue
	StatusConfig
	StatusNeedsReset
	StatusBadUsed
	StatusRefused
	StatusCredit
	statusCount
)

// statusText has no entry for the states that are no failure.
var statusText = [statusCount]string{
	StatusNoDevice:   "found no such virtio device on PCI bus 0",
	StatusNoRegions:  "the virtio device lacks one of the structures of the PCI transport",
	StatusFeatures:   "the device does not offer, or refused, the features asked for",
	StatusQueue:      "the device has no such queue, or only a smaller one",
	StatusConfig:     "the device is too small or too limited for the requests",
	StatusNeedsReset: "the device asked for a reset",
	StatusBadUsed:    "the device returned a chain that it did not have, or a wrong length",
	StatusRefused:    "the peer refused or reset the connection",
	StatusCredit:     "the peer has less room than one packet needs",
}

// Result is what a ready program has left in its result words, up to now if it
// is still running. Programs that drive no device fill the first three only.
type Result struct {
	// Count is the number of finished rounds, requests or packets.
	Count uint64
	// FirstTSC and LastTSC are the time stamp counter before the first round
	// and after the last.
	FirstTSC, LastTSC uint64

	Status Status
	// Errors counts requests that the device failed.
	Errors uint64
	// Mismatches counts requests whose data was not as expected.
	Mismatches uint64
	// Bytes is the payload that was moved.
	Bytes uint64
	// Kicks counts doorbells.
	Kicks uint64
	// Detail says more about a failure: the offset of the last mismatch, or
	// the last error status.
	Detail uint64
	// Features are those that were accepted.
	Features uint64
	// Latency is the sum of what is in the histogram, in time stamp ticks,
	// and Histogram has the time from doorbell to completion.
	Latency   uint64
	Histogram Histogram
}

// ReadResult takes apart the ResultSize bytes of guest memory at ResultStart.
func ReadResult(p []byte) (Result, error) {
	if len(p) < ResultSize {
		return Result{}, fmt.Errorf("micro: %d bytes of result words, want %d", len(p), ResultSize)
	}
	word := func(off int) uint64 { return binary.LittleEndian.Uint64(p[off:]) }
	r := Result{
		Count: word(ResultCount), FirstTSC: word(ResultFirstTSC), LastTSC: word(ResultLastTSC),
		Status: Status(word(resultStatus)), Errors: word(resultErrors), Mismatches: word(resultMismatches),
		Bytes: word(resultBytes), Kicks: word(resultKicks), Detail: word(resultDetail),
		Features: word(resultFeatures), Latency: word(resultLatency),
	}
	for i := range r.Histogram {
		r.Histogram[i] = word(resultHistogram + 8*i)
	}
	return r, nil
}

// ErrRunning is the error of a program that has not come to its end.
var ErrRunning = errors.New("micro: the program has not ended")

// Err is nil if the program came to its regular end. Errors and Mismatches do
// not count here.
func (r *Result) Err() error {
	switch {
	case r.Status == StatusDone:
		return nil
	case r.Status == StatusRunning:
		return ErrRunning
	case r.Status < statusCount:
		return fmt.Errorf("micro: %s (detail %#x)", statusText[r.Status], r.Detail)
	}
	return fmt.Errorf("micro: status %d is none that a program leaves", r.Status)
}

// A bucket of a histogram is a quarter of a power of two.
const (
	histogramBits    = 2
	histogramBuckets = 64 << histogramBits
)

// Histogram counts times by their size in ticks of the time stamp counter.
// Bucket 4*e+m has those from (4+m)<<(e-2) up to, not including, (5+m)<<(e-2);
// times below 4 ticks are in the bucket of 4.
type Histogram [histogramBuckets]uint64

// Count is the number of times in the histogram.
func (h *Histogram) Count() uint64 {
	var n uint64
	for _, c := range h {
		n += c
	}
	return n
}

// Quantile is a time in ticks that a share q, between 0 and 1, of all times
// does not exceed, to within an eighth of it; 0 if the histogram is empty.
func (h *Histogram) Quantile(q float64) float64 {
	total := h.Count()
	if total == 0 {
		return 0
	}
	rank := max(1, uint64(math.Ceil(q*float64(total))))
	var seen uint64
	for i, c := range h {
		if seen += c; seen >= rank {
			return bucketMiddle(i)
		}
	}
	return 0 // not reached: rank is at most total
}

func bucketMiddle(i int) float64 {
	const sub = 1 << histogramBits
	return math.Ldexp(float64(sub+i%sub)+0.5, i/sub-histogramBits)
}
