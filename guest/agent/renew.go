package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// seedSize is how many random bytes a restored guest gets: twice what Linux's
// generator has as its key.
const seedSize = 64

// Reseed mixes seed into this system's random number generator and has it make a new
// key, for Server.Reseed. What it gives out from then on has nothing to do with what
// another system that was restored from the same snapshot gives out.
func Reseed(seed []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("reseed: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(seed); err != nil {
		return fmt.Errorf("reseed: %w", err)
	}
	// Without the call the kernel would use the seed within five minutes
	// (random(4), RNDRESEEDCRNG; Linux 4.14 and later).
	const rndReseedCRNG = 0x5207
	if err := unix.IoctlSetInt(int(f.Fd()), rndReseedCRNG, 0); err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("reseed: %w", err)
	}
	return nil
}

// Reseed gives the guest's random number generator something that no other guest gets.
func (c *Client) Reseed(ctx context.Context) error {
	seed := make([]byte, seedSize)
	if _, err := rand.Read(seed); err != nil {
		return err
	}
	if err := c.simple(ctx, request{Op: opReseed, Seed: seed}); err != nil {
		return fmt.Errorf("reseed the guest's random number generator: %w", err)
	}
	return nil
}

// simple has the guest do something that takes no streams.
func (c *Client) simple(ctx context.Context, r request) error {
	s, err := c.open(r)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.abandon(s) })
	defer stop()
	<-s.done
	return s.failure()
}

func (c *connection) reseed(seed []byte) error {
	if c.Reseed == nil {
		return errors.New("this agent does not reseed")
	}
	if len(seed) == 0 || len(seed) > 4096 {
		return fmt.Errorf("a seed of %d bytes: want 1 to 4096", len(seed))
	}
	return c.Reseed(seed)
}
