package blk

import "sync"

// clusters are those from first to last.
type clusters struct{ first, last uint64 }

// clustersOf are those that a range, which is not empty, lies in.
func clustersOf(s span) clusters {
	return clusters{s.offset / clusterSize, (s.offset + s.length - 1) / clusterSize}
}

// claims keeps apart those who bring the same clusters into an overlay.
type claims struct {
	mu    sync.Mutex
	freed *sync.Cond // on mu
	held  []clusters
}

func newClaims() *claims {
	c := &claims{}
	c.freed = sync.NewCond(&c.mu)
	return c
}

// take waits until nobody has any of the clusters. All are taken at once, so
// that no two can wait for each other.
func (c *claims) take(want clusters) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.taken(want) {
		c.freed.Wait()
	}
	c.held = append(c.held, want)
}

// try takes the clusters if nobody has any of them.
func (c *claims) try(want clusters) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken(want) {
		return false
	}
	c.held = append(c.held, want)
	return true
}

func (c *claims) taken(want clusters) bool {
	for _, h := range c.held {
		if want.first <= h.last && h.first <= want.last {
			return true
		}
	}
	return false
}

// give back clusters that were taken with the same range.
func (c *claims) give(back clusters) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, h := range c.held {
		if h == back {
			last := len(c.held) - 1
			c.held[i] = c.held[last]
			c.held = c.held[:last]
			break
		}
	}
	c.freed.Broadcast()
}
