package handover

import (
	"errors"
	"fmt"
)

// calm is a world in which nothing fails any more: processes are started again, what is
// under way succeeds, and what is said is heard once, in order.
type calm struct {
	world
	machine machine
	// said is what each side has not heard yet.
	said [2][]Verb
}

// settle is what comes of a world that is calm from now on, in words. It is an error if
// after long enough the guest is not owned, for good, by exactly one side.
func settle(w world, m machine) (string, error) {
	c := &calm{world: w, machine: m}
	const rounds = 12
	for range rounds {
		if err := c.round(); err != nil {
			return "", err
		}
	}
	return c.outcome()
}

func (c *calm) outcome() (string, error) {
	a, b := c.hosts[src], c.hosts[dst]
	if a.fenced || b.fenced && c.sky&letter(dst, Started) != 0 {
		// Whether the destination had all when the source was fenced is not known, nor
		// whether the source hears a fenced destination's STARTED of before.
		return "fenced", nil
	}
	atSource, atDestination := a.disk&sourceMay != 0, !b.fenced && b.disk&destinationMay != 0
	where := "at the source"
	if atDestination {
		where = "at the destination"
	}
	switch {
	case !c.source.Final(), !b.fenced && c.destination.state != 0 && !c.destination.Final():
		return "", fmt.Errorf("it never ends: source %s, destination %s", c.source.state, c.destination.state)
	case atSource == atDestination:
		return "", fmt.Errorf("owned at the source: %v, at the destination: %v", atSource, atDestination)
	case a.running && atSource, b.running && atDestination:
		return where + ", running", nil
	case !c.died:
		return "", errors.New("the guest is lost, and no process was that had it")
	}
	return where + ", lost", nil
}

// round does all that can be done without a timer, and then lets all timers fire, and
// the link break and come back.
func (c *calm) round() error {
	for s := range side(len(c.hosts)) {
		if h := c.hosts[s]; !h.up && !h.fenced {
			said, err := c.restart(s)
			if err := c.note(s, said, err); err != nil {
				return err
			}
		}
	}
	for busy := true; busy; {
		a, err := c.work(src)
		b, err2 := c.work(dst)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		busy = a || b
	}
	return errors.Join(c.poke(src), c.poke(dst))
}

// note puts what a side has said on the way to the other.
func (c *calm) note(s side, said []Verb, err error) error {
	c.said[s.other()] = append(c.said[s.other()], said...)
	if err == nil {
		err = c.broken()
	}
	return err
}

// work does one thing on a side, and says whether there was one.
func (c *calm) work(s side) (bool, error) {
	if c.hosts[s].fenced {
		c.said[s] = nil
		return false, nil
	}
	var said []Verb
	var err error
	switch ends := c.ends(s); {
	case len(c.said[s]) > 0:
		v := c.said[s][0]
		c.said[s] = c.said[s][1:]
		said, err = c.step(c.machine, s, c.hear(v))
	case len(ends) > 0:
		said, err = c.end(c.machine, s, ends[0])
	case c.canMove(s):
		said, err = c.moveOn(c.machine, s)
	default:
		return false, nil
	}
	return true, c.note(s, said, err)
}

func (c *calm) poke(s side) error {
	if c.hosts[s].fenced {
		return nil
	}
	var events []Event
	for t := AwaitReady; t <= Retry; t++ {
		events = append(events, Event{Kind: TimerFired, Timer: t})
	}
	events = append(events, Event{Kind: LinkLost}, Event{Kind: LinkBack})
	if c.hosts[s.other()].fenced {
		events = append(events, Event{Kind: ForceRun, Reason: "fenced"})
	}
	for _, e := range events {
		said, err := c.step(c.machine, s, e)
		if err := c.note(s, said, err); err != nil {
			return err
		}
	}
	return nil
}
