package bench

import (
	"context"
	"fmt"
	"slices"
)

// contestant is one way to do what a case measures. Run does it once and
// returns a sample for each metric of the case.
type contestant struct {
	name string
	// peer says that the case is worth its time without this one.
	peer bool
	run  func(context.Context) ([]float64, error)
}

// compete runs all contestants in turn: once to warm caches up, which does not
// count, then n rounds, every second one in reverse order, so that nobody
// profits from who runs before. It adds a Series for each to each metric.
//
// A peer that fails is left out and noted. Any other failure ends the case.
func (r *Result) compete(ctx context.Context, e *Env, n int, contestants ...contestant) error {
	samples := make(map[string][][]float64) // by contestant, then by round
	running := slices.Clone(contestants)
	for round := range n + 1 {
		order := slices.Clone(running)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, c := range order {
			if err := ctx.Err(); err != nil {
				return err
			}
			e.progress("round %d of %d: %s", round, n, c.name)
			values, err := c.run(ctx)
			switch {
			case err != nil && !c.peer:
				return fmt.Errorf("%s: %w", c.name, err)
			case err != nil:
				r.Notes = append(r.Notes, fmt.Sprintf("%s left out: %v", c.name, err))
				running = slices.DeleteFunc(running, func(d contestant) bool { return d.name == c.name })
			case len(values) != len(r.Metrics):
				return fmt.Errorf("%s: %d samples for %d metrics", c.name, len(values), len(r.Metrics))
			case round > 0:
				samples[c.name] = append(samples[c.name], values)
			}
		}
	}
	for _, c := range running {
		for i, m := range r.Metrics {
			s := &Series{Contestant: c.name}
			for _, values := range samples[c.name] {
				s.Samples = append(s.Samples, values[i])
			}
			m.Series = append(m.Series, s)
		}
	}
	return nil
}
