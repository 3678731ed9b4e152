package main

import (
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/godwit-vmm/godwit/internal/events"
	"github.com/godwit-vmm/godwit/internal/vmm"
)

// TestEarlyEvents: what happens before others can ask is told all the same.
func TestEarlyEvents(t *testing.T) {
	var o vmm.Options
	h := newHost(&o, io.Discard)
	o.Event(vmm.Event{Kind: vmm.EventRestored, Path: "snap"})
	o.Event(vmm.Event{Kind: vmm.EventDeviceReset, Device: "rng", Err: errors.New("a loop")})
	i, err := newInstance(naming{name: "early", vsock: vsockOff})
	if err != nil {
		t.Fatal(err)
	}
	defer i.close()
	h.serveOn(i, nil)
	o.Event(vmm.Event{Kind: vmm.EventStarted})
	i.answers()
	h.events.Close()
	s := h.events.SubscribeAfter(0)
	defer s.Close()
	var got []events.Event
	for {
		e, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || e.Time.IsZero() || e.Name != "early" {
			t.Fatalf("got %+v, %v", e, err)
		}
		got = append(got, events.Event{Type: e.Type, Message: e.Message, Device: e.Device})
	}
	want := []events.Event{
		{Type: events.Restored, Message: "snap"}, {Type: events.DeviceReset, Message: "a loop", Device: "rng"},
		{Type: events.Started}, {Type: events.Up},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
