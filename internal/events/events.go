// Package events tells whoever asks what happens to a guest: that it started, was
// paused, panicked and so on.
//
// The last events are kept, so that one who comes later, or was cut off, can ask
// for them. Whoever publishes never waits: a subscriber that is too slow misses
// the oldest events, and gets one in their place that says how many.
package events

import (
	"context"
	"io"
	"sync"
	"time"
)

// Type says what has happened.
type Type string

// What can happen to a guest.
const (
	// Started: the guest runs its first instruction.
	Started Type = "started"
	// Up: the guest's agent answers.
	Up Type = "up"
	// Paused and Resumed: its processors stand still, and go on.
	Paused  Type = "paused"
	Resumed Type = "resumed"
	// PowerButton was pressed.
	PowerButton Type = "power-button"
	// Rebooted: the guest asked for a reset and starts anew.
	Rebooted Type = "rebooted"
	// Panicked: the guest's kernel said so.
	Panicked Type = "panicked"
	// DeviceReset: a virtio device does nothing any more until its driver resets
	// it, for the driver broke the rules or the host failed.
	DeviceReset Type = "device-reset"
	// Trouble that the guest, or the host, makes for a device.
	Trouble Type = "trouble"
	// Snapshot: one was taken.
	Snapshot Type = "snapshot"
	// Restored: the guest goes on from a snapshot.
	Restored Type = "restored"
	// Migrated: the guest goes on elsewhere.
	Migrated Type = "migrated"
	// Ended: the guest is gone; Message says how. It is the last event.
	Ended Type = "ended"

	// Gone is what a client makes of a stream that stops without Ended: the
	// process that ran the guest was killed.
	Gone Type = "gone"
	// Dropped stands for Count events that the subscriber was too slow for,
	// or that are too old to be kept.
	Dropped Type = "dropped"
)

// Event is something that has happened.
type Event struct {
	// Seq numbers the events of a guest from 1. Of a Dropped event it is the
	// number of the last one that is missing.
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	Type Type      `json:"type"`
	// Name of the guest.
	Name string `json:"name"`
	// Message says more, for people.
	Message string `json:"message,omitempty"`
	// Device is which one it was, where it was a device.
	Device string `json:"device,omitempty"`
	// Count is that of a Dropped event.
	Count uint64 `json:"count,omitempty"`
}

// Keep is how many events a Bus keeps.
const Keep = 256

// Bus passes events on. All methods may be called from any goroutine.
type Bus struct {
	name string

	mu sync.Mutex
	// kept is a circle: event number n is at n % Keep.
	kept        [Keep]Event
	last        uint64 // number of the last event
	dropped     uint64 // that of Stats
	closed      bool
	subscribers map[*Subscription]struct{}
	idle        chan struct{} // closed when the last subscriber goes; nil if nobody waits
}

// New makes a bus for the guest of that name.
func New(name string) *Bus {
	return &Bus{name: name, subscribers: make(map[*Subscription]struct{})}
}

// Publish tells all subscribers of an event, of which it sets the number, and the
// time and the name if they are missing. It never waits and does not allocate.
// After Close it does nothing.
func (b *Bus) Publish(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	if e.Name == "" {
		e.Name = b.name
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.last++
	e.Seq = b.last
	b.kept[e.Seq%Keep] = e
	b.wake()
}

// wake tells all subscribers to look again. The caller holds mu.
func (b *Bus) wake() {
	for s := range b.subscribers {
		select {
		case s.more <- struct{}{}:
		default:
		}
	}
}

// oldest is the number of the first event that is kept. The caller holds mu.
func (b *Bus) oldest() uint64 { return b.last - min(b.last, Keep) + 1 }

// Close says that nothing more happens: subscribers get what is left, and then
// io.EOF.
func (b *Bus) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.wake()
	return nil
}

// Drain returns when all subscriptions are closed, as handlers do after Close when
// they have passed on the rest, or when ctx ends.
func (b *Bus) Drain(ctx context.Context) error {
	b.mu.Lock()
	if len(b.subscribers) == 0 {
		b.mu.Unlock()
		return nil
	}
	if b.idle == nil {
		b.idle = make(chan struct{})
	}
	idle := b.idle
	b.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stats are the figures of a Bus.
type Stats struct {
	// Published events, and those that subscribers have missed, each for each of
	// them.
	Published, Dropped uint64
	// Subscribers are those of now.
	Subscribers int
}

// Stats returns the figures of now.
func (b *Bus) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Stats{Published: b.last, Dropped: b.dropped, Subscribers: len(b.subscribers)}
}

// Subscription gives events one after the other. It is for one goroutine.
type Subscription struct {
	b    *Bus
	next uint64 // number of the event that Next returns
	// more has a token when there may be another event.
	more chan struct{}
}

// Subscribe gives the events from now on.
func (b *Bus) Subscribe() *Subscription {
	return b.subscribe(func() uint64 { return b.last })
}

// SubscribeAfter gives the events after the one with a number, those that are
// still kept and those to come. After 0 are all.
func (b *Bus) SubscribeAfter(seq uint64) *Subscription {
	return b.subscribe(func() uint64 { return min(seq, b.last) })
}

// SubscribeSince gives the events since a time, those that are still kept and
// those to come.
func (b *Bus) SubscribeSince(t time.Time) *Subscription {
	return b.subscribe(func() uint64 {
		n := b.oldest()
		for n <= b.last && b.kept[n%Keep].Time.Before(t) {
			n++
		}
		return n - 1
	})
}

// subscribe gives the events after the number that after returns.
func (b *Bus) subscribe(after func() uint64) *Subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &Subscription{b: b, next: after() + 1, more: make(chan struct{}, 1)}
	b.subscribers[s] = struct{}{}
	return s
}

// Next waits for the next event. It returns io.EOF when the bus is closed and all
// is said, and the context's error when that ends before.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		if e, ok, err := s.take(); ok || err != nil {
			return e, err
		}
		select {
		case <-s.more:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// take returns the next event if there is one.
func (s *Subscription) take() (_ Event, ok bool, _ error) {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	switch oldest := b.oldest(); {
	case s.next < oldest:
		dropped := Event{
			Seq: oldest - 1, Time: time.Now().UTC(), Type: Dropped, Name: b.name, Count: oldest - s.next,
		}
		s.next = oldest
		b.dropped += dropped.Count
		return dropped, true, nil
	case s.next <= b.last:
		e := b.kept[s.next%Keep]
		s.next++
		return e, true, nil
	case b.closed:
		return Event{}, false, io.EOF
	}
	return Event{}, false, nil
}

// Close ends the subscription.
func (s *Subscription) Close() error {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.subscribers, s)
	if len(b.subscribers) == 0 && b.idle != nil {
		close(b.idle)
		b.idle = nil
	}
	return nil
}
