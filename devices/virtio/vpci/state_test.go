package vpci

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/memory"
)

func TestPauseResume(t *testing.T) {
	d := &echoDevice{queues: 2}
	r := newRig(t, d, nil)
	r.f.Pause()
	r.start(virtio.FeatureVersion1 | virtio.FeatureEventIdx)
	if starts, _, _ := d.counts(); starts != 0 {
		t.Error("a paused function started its device")
	}
	r.f.Resume()
	r.echo(0, "after the first pause")
	for range 100 {
		r.f.Pause()
		a, b := r.send(0, "while"), r.send(1, "paused")
		r.kick(0)
		if r.queues[0].UsedIndex() != r.queues[0].AvailIndex()-1 {
			t.Fatal("a paused device serves a queue")
		}
		r.f.Resume()
		r.f.Resume() // of a function that runs does nothing
		if got := r.receive(0, a) + r.receive(1, b); got != "whilepaused" {
			t.Fatalf("got %q", got)
		}
	}
	// A reset while it is paused.
	r.f.Pause()
	r.f.Pause()
	r.set(regStatus, 0)
	r.f.Resume()
	starts, stops, _ := d.counts()
	if starts != 101 || stops != 101 {
		t.Errorf("%d starts and %d stops, want 101", starts, stops)
	}
}

// TestConfigChangesWhilePaused: a device that is stopped cannot tell the driver
// that the host has changed its configuration; the driver looks after the pause.
func TestConfigChangesWhilePaused(t *testing.T) {
	d := &echoDevice{queues: 1}
	r := newRig(t, d, nil)
	r.start(virtio.FeatureVersion1)
	for _, moved := range []bool{false, true} {
		r.f.Pause()
		if moved {
			d = &echoDevice{queues: 1}
			r = move(t, r, d)
		}
		generation := r.get(regGeneration)
		d.config[0]++
		r.f.Resume()
		r.awaitMessage(0x40)
		if r.get(regGeneration) == generation {
			t.Error("the configuration generation is the same")
		}
	}
	r.f.Pause()
	r.set(regStatus, 0)
	r.f.Resume()
	if isr := r.read(barBase+isrPage, 1); isr != 0 {
		t.Errorf("ISR status %#x for a driver that is not there", isr)
	}
}

// move makes a second machine with the state of the first, through JSON, as a
// migration does.
func move(t *testing.T, from *rig, d virtio.Device) *rig {
	t.Helper()
	from.f.Pause()
	text, err := json.Marshal(struct {
		PCI  any
		Virt State
	}{from.bus.Save(), from.f.Save()})
	if err != nil {
		t.Fatal(err)
	}
	to := newRig(t, d, from.mem)
	state := struct {
		PCI  json.RawMessage
		Virt State
	}{}
	if err := json.Unmarshal(text, &state); err != nil {
		t.Fatal(err)
	}
	bus := to.bus.Save()
	if err := json.Unmarshal(state.PCI, &bus); err != nil {
		t.Fatal(err)
	}
	if err := to.bus.Restore(bus); err != nil {
		t.Fatal(err)
	}
	if err := to.f.Restore(state.Virt); err != nil {
		t.Fatal(err)
	}
	if again := to.f.Save(); !reflect.DeepEqual(again, state.Virt) {
		t.Fatalf("saved again %+v, want %+v", again, state.Virt)
	}
	to.queues = from.queues
	for i, q := range to.queues {
		q.Kick = func() { to.kick(i) }
	}
	return to
}

func TestSaveRestore(t *testing.T) {
	d := &echoDevice{queues: 3}
	r := newRig(t, d, nil)
	r.start(virtio.FeatureVersion1 | virtio.FeatureEventIdx | virtio.FeatureIndirect)
	for i := range 20 {
		r.echo(0, "before")
		r.echo(i%3, "the move")
		r.f.Pause()
		waiting := r.send(1, "waiting")
		r.kick(1) // lost: it is in the eventfd of the first machine
		next := &echoDevice{queues: 3}
		r = move(t, r, next)
		if starts, _, _ := next.counts(); starts != 0 {
			t.Fatal("a restored function runs before Resume")
		}
		r.f.Resume()
		// An interrupt for each queue: those under way may have been lost.
		for i := range 3 {
			r.awaitMessage(0x41 + uint32(i))
		}
		if got := r.receive(1, waiting); got != "waiting" {
			t.Fatalf("got %q", got)
		}
		r.echo(2, "after")
		if len(r.bells.at) != 3 {
			t.Fatal("no doorbells")
		}
	}
}

// TestSaveRestoreStages moves functions that do not run.
func TestSaveRestoreStages(t *testing.T) {
	d := &echoDevice{queues: 2}
	fresh := newRig(t, d, nil)
	r := move(t, fresh, &echoDevice{queues: 2})
	r.f.Resume()
	r.start(virtio.FeatureVersion1)
	r.echo(0, "from power on")

	half := newRig(t, d, nil)
	half.negotiate(virtio.FeatureVersion1)
	half.enableMSIX()
	half.set(regConfigVector, 0)
	half.addQueues()
	half.set(regQueueSelect, 7)
	r = move(t, half, &echoDevice{queues: 2})
	r.f.Resume()
	if r.get(regQueueSelect) != 7 {
		t.Errorf("queue_select is %d", r.get(regQueueSelect))
	}
	r.set(regStatus, running)
	r.echo(1, "from the middle of the initialization")

	r.queues[0].SetAvailIndex(0x4000)
	r.kick(0)
	r.awaitMessage(0x40)
	r.f.stopping.Wait()
	reason := r.f.Err().Error()
	next := &echoDevice{queues: 2}
	r = move(t, r, next)
	r.f.Resume()
	r.wantStatus("a failed device that was moved", running|statusNeedsReset)
	if starts, _, _ := next.counts(); starts != 0 || r.f.Err().Error() != reason {
		t.Errorf("%d starts, %v", starts, r.f.Err())
	}
	r.start(virtio.FeatureVersion1)
	r.echo(0, "after a reset")
}

func TestRestoreRefuses(t *testing.T) {
	r := newRig(t, &echoDevice{queues: 2}, nil)
	r.start(virtio.FeatureVersion1)
	r.f.Pause()
	good := r.f.Save()
	tests := []struct {
		name   string
		change func(*State)
		want   string
	}{
		{"type", func(s *State) { s.Type = virtio.TypeNet }, "kind net"},
		{"status", func(s *State) { s.Status |= 16 }, "status"},
		{"needs reset in the status", func(s *State) { s.Status |= statusNeedsReset }, "status"},
		{"no driver", func(s *State) { s.Status = statusFeaturesOK }, "status"},
		{"no features", func(s *State) { s.Status &^= statusFeaturesOK }, "status"},
		{"features", func(s *State) { s.Features |= 1 << 33 }, "features"},
		{"features of old", func(s *State) { s.Features = 0 }, "features"},
		{"ISR", func(s *State) { s.ISR = 4 }, "ISR"},
		{"vector", func(s *State) { s.ConfigVector = 3 }, "vector"},
		{"fewer queues", func(s *State) { s.Queues = s.Queues[:1] }, "1 queues"},
		{"more queues", func(s *State) { s.Queues = append(s.Queues, s.Queues...) }, "4 queues"},
		{"size", func(s *State) { s.Queues[0].Registers.Size = 128 }, "power of two"},
		{"no size", func(s *State) { s.Queues[1].Registers.Size = 0 }, "power of two"},
		{"vector of a queue", func(s *State) { s.Queues[1].Vector = 0xfffe }, "vector"},
		{"place", func(s *State) {
			s.Queues[1].Registers.Used = 1 << 40
			s.Queues[1].Ring.Config.Used = 1 << 40
		}, "used ring"},
		{"two places", func(s *State) { s.Queues[1].Registers.Used = 0x1000 }, "registers say"},
		{"indices", func(s *State) { s.Queues[0].Ring.Next += 1000 }, "in flight"},
		{"too early", func(s *State) { s.Status = statusAcknowledge | statusDriver }, "enabled before"},
	}
	for _, tt := range tests {
		s := good
		s.Queues = append([]QueueState(nil), good.Queues...)
		tt.change(&s)
		to := newRig(t, &echoDevice{queues: 2}, r.mem)
		clean := to.f.Save()
		err := to.f.Restore(s)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q in it", tt.name, err, tt.want)
		}
		if got := to.f.Save(); !reflect.DeepEqual(got, clean) {
			t.Errorf("%s: after the error the function is %+v", tt.name, got)
		}
	}
	bad := good
	bad.Version++
	if err := r.f.Restore(bad); !errors.Is(err, devices.ErrVersion) {
		t.Errorf("another version: %v", err)
	}
}

// TestRestoreBeforeMemory: the transport may be restored before the memory is,
// which a post-copy migration fills last.
func TestRestoreBeforeMemory(t *testing.T) {
	r := newRig(t, &echoDevice{queues: 1}, nil)
	r.start(virtio.FeatureVersion1)
	r.echo(0, "before")
	r.f.Pause()
	content := append([]byte(nil), r.mem.Regions()[0].Mem[:1<<20]...)
	state := r.f.Save()
	clear(r.mem.Regions()[0].Mem[:1<<20])
	if err := r.f.Restore(state); err != nil {
		t.Fatal(err)
	}
	r.mem.Set(memory.GPA(0), content)
	r.f.Resume()
	r.echo(0, "after")
}
