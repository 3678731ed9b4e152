package blk

import (
	"testing"
	"time"
)

func TestStats(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, noInline := range []bool{false, true} {
			path, _ := makeImage(t, 1<<20)
			d := newDisk(t, Config{Path: path, engine: e, noInline: noInline})
			start := time.Now()
			d.read(0, 4096)
			d.read(8, 512)
			d.mustSend(typeOut, 0, make([]byte, 1024))
			d.mustSend(typeFlush, 0)
			if _, s := d.read(1<<40, 512); s != statusIOError {
				t.Errorf("behind the end: status %d", s)
			}
			all := time.Since(start)
			want := Stats{
				Read: Counts{Requests: 2, Bytes: 4608}, Write: Counts{Requests: 1, Bytes: 1024},
				Flushes: Counts{Requests: 1},
			}
			got := d.device.Stats()
			for _, c := range []*Counts{&got.Read, &got.Write, &got.Flushes} {
				if c.Time <= 0 || c.Time > all {
					t.Errorf("requests took %v, of %v in all", c.Time, all)
				}
				checkTimes(t, c)
				c.Time, c.Times = 0, [timeBuckets]uint64{}
			}
			if got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		}
	})
}

// checkTimes tests that all requests are in a bucket, and that the buckets agree with
// the time that they took together.
func checkTimes(t *testing.T, c *Counts) {
	t.Helper()
	var n uint64
	var least time.Duration
	for i, bound := range TimeBounds() {
		n += c.Times[i]
		if i+1 < len(c.Times) {
			least += time.Duration(c.Times[i+1]) * bound
		}
	}
	if n += c.Times[timeBuckets-1]; n != c.Requests || c.Time < least {
		t.Errorf("%d requests are in buckets of %v at least, want %d and %v", n, least, c.Requests, c.Time)
	}
}

func TestTimeBuckets(t *testing.T) {
	bounds := TimeBounds()
	if len(bounds) != timeBuckets-1 {
		t.Fatalf("%d bounds", len(bounds))
	}
	for i, b := range bounds {
		if at, above := timeBucket(b), timeBucket(b+1); at != i || above != i+1 {
			t.Errorf("%v is in bucket %d and a nanosecond more in %d, want %d and %d", b, at, above, i, i+1)
		}
	}
	for d, want := range map[time.Duration]int{-1: 0, 0: 0, 1: 0, 1 << 62: timeBuckets - 1} {
		if got := timeBucket(d); got != want {
			t.Errorf("%v is in bucket %d, want %d", d, got, want)
		}
	}
}
