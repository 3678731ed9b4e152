package api

import (
	"fmt"
	"math/bits"

	"github.com/godwit-vmm/godwit/devices/virtio/limit"
)

// config is the limiter as godwit has it; nil has no limits.
func (l *RateLimiter) config() (c limit.Config, err error) {
	if l == nil {
		return c, nil
	}
	if c.Bandwidth, err = l.Bandwidth.rate(); err != nil {
		return c, fmt.Errorf("bandwidth: %w", err)
	}
	if c.Operations, err = l.Ops.rate(); err != nil {
		return c, fmt.Errorf("ops: %w", err)
	}
	return c, nil
}

// change is what the limiter changes; nil changes nothing.
func (l *RateLimiter) change() (h limit.Change, err error) {
	if l == nil {
		return h, nil
	}
	c, err := l.config()
	if l.Bandwidth != nil {
		h.Bandwidth = &c.Bandwidth
	}
	if l.Ops != nil {
		h.Operations = &c.Operations
	}
	return h, err
}

// rate is the bucket as a rate. One of size 0, or that takes no time to fill, is no
// limit (as it is for Firecracker).
func (b *TokenBucket) rate() (limit.Rate, error) {
	switch {
	case b == nil || b.Size == 0 || b.RefillTime == 0:
		return limit.Rate{}, nil
	case b.Size > limit.MaxRate || b.OneTimeBurst > limit.MaxRate:
		return limit.Rate{}, fmt.Errorf("size %d and one_time_burst %d: want at most %d", b.Size, b.OneTimeBurst, uint64(limit.MaxRate))
	}
	// MaxRate times a thousand does not fit in 64 bits with certainty.
	hi, lo := bits.Mul64(b.Size, 1000)
	lo, carry := bits.Add64(lo, b.RefillTime/2, 0)
	if hi += carry; hi >= b.RefillTime {
		return limit.Rate{}, fmt.Errorf("size %d in %d ms: want at most %d a second", b.Size, b.RefillTime, uint64(limit.MaxRate))
	}
	rate, _ := bits.Div64(hi, lo, b.RefillTime)
	switch {
	case rate > limit.MaxRate:
		return limit.Rate{}, fmt.Errorf("size %d in %d ms: want at most %d a second", b.Size, b.RefillTime, uint64(limit.MaxRate))
	case rate == 0:
		return limit.Rate{}, fmt.Errorf("size %d in %d ms: want at least one a second", b.Size, b.RefillTime)
	}
	return limit.Rate{PerSecond: rate, Burst: b.Size, OneTime: b.OneTimeBurst}, nil
}
