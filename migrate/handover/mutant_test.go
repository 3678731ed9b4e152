package handover

import "testing"

// sourceMutant goes its own way when instead returns true.
func sourceMutant(name string, instead func(s *Source, e Event) ([]Action, bool)) machine {
	m := genuine
	m.name = name
	m.source = func(s Source, e Event) (Source, []Action) {
		mutated := s
		if actions, ok := instead(&mutated, e); ok {
			return mutated, actions
		}
		return s.Step(e)
	}
	return m
}

// destinationMutant goes its own way when instead returns true.
func destinationMutant(name string, instead func(d *Destination, e Event) ([]Action, bool)) machine {
	m := genuine
	m.name = name
	m.destination = func(d Destination, e Event) (Destination, []Action) {
		mutated := d
		if actions, ok := instead(&mutated, e); ok {
			return mutated, actions
		}
		return d.Step(e)
	}
	return m
}

// pruningMutant removes other records than it may.
func pruningMutant(name string, prunes func(Entry) bool) machine {
	m := genuine
	m.name, m.prunes = name, prunes
	return m
}

// resumes is what a source does that trusts to nobody having taken the guest.
func resumes(s *Source) []Action {
	s.state = SourceAborted
	return s.resume()
}

// runs is what a destination does that starts by itself, with all due care.
func runs(d *Destination) []Action {
	d.state = DestinationLocking
	return []Action{do(TakeLocks)}
}

// mutants are plausible mistakes.
func mutants() []machine {
	return []machine{
		sourceMutant("resume on a COMMIT send error", func(s *Source, e Event) ([]Action, bool) {
			ok := s.state == SourceReleased && e.Kind == LinkLost && s.guest
			if !ok {
				return nil, false
			}
			return resumes(s), true
		}),
		sourceMutant("resume if no STARTED arrives in time", func(s *Source, e Event) ([]Action, bool) {
			if s.state != SourceReleased || !fired(e, Resend) {
				return nil, false
			}
			return resumes(s), true
		}),
		destinationMutant("destination starts by itself at READY", func(d *Destination, e Event) ([]Action, bool) {
			if d.state != DestinationReceiving || e.Kind != StateLoaded {
				return nil, false
			}
			return append(runs(d), d.say(Ready)), true
		}),
		destinationMutant("destination runs on timeout", func(d *Destination, e Event) ([]Action, bool) {
			if d.state != DestinationReady || !fired(e, AwaitCommit) {
				return nil, false
			}
			return runs(d), true
		}),
		sourceMutant("COMMIT before the journal write", func(s *Source, e Event) ([]Action, bool) {
			if s.state != SourceFrozen || !heard(e, Ready) {
				return nil, false
			}
			return append([]Action{s.say(Commit, "")}, s.owning(e)...), true
		}),
		destinationMutant("run before the journal write", func(d *Destination, e Event) ([]Action, bool) {
			if d.state != DestinationLocking || e.Kind != LocksTaken || !d.guest {
				return nil, false
			}
			return append([]Action{do(Run)}, d.locking(e)...), true
		}),
		destinationMutant("REFUSED said but not journaled", func(d *Destination, e Event) ([]Action, bool) {
			actions := d.step(e)
			if d.state != DestinationRefusing || d.resting {
				return nil, false
			}
			d.state = DestinationRefused
			d.guest = false
			return append([]Action{do(Destroy)}, d.repeat(Refused)...), len(actions) > 0
		}),
		sourceMutant("resume when it is unknown whether RELEASED was written", func(s *Source, e Event) ([]Action, bool) {
			if s.state != SourceReleasing || e.Kind != JournalUnknown {
				return nil, false
			}
			return resumes(s), true
		}),
		destinationMutant("OWNER forgotten before it is acknowledged", func(d *Destination, e Event) ([]Action, bool) {
			if d.state != DestinationOwning || e.Kind != JournalDone {
				return nil, false
			}
			return append(d.owning(e), do(Forget)), true
		}),
		pruningMutant("OWNER pruned before it is acknowledged", func(e Entry) bool { return e.Role == RoleDestination && !e.Settled }),
		pruningMutant("RELEASED pruned", func(e Entry) bool { return e.State == StateReleased }),
		pruningMutant("GONE pruned", func(e Entry) bool { return e.State == StateGone }),
	}
}

// careless mutants break a rule that guards against what a walk of one migration does
// not have: a later migration of the same guest, or a busy disk.
func careless() []machine {
	return []machine{
		sourceMutant("take the guest back without the journal", func(s *Source, e Event) ([]Action, bool) {
			if s.state != SourceLocking || e.Kind != LocksTaken {
				return nil, false
			}
			s.state = SourceOwner
			return append(s.resume(), s.say(Ack, "")), true
		}),
		sourceMutant("COMMIT before the locks are dropped", func(s *Source, e Event) ([]Action, bool) {
			if s.state != SourceReleasing || e.Kind != JournalDone {
				return nil, false
			}
			return append(s.releasing(e), s.say(Commit, "")), true
		}),
		destinationMutant("REFUSED before the locks are dropped", func(d *Destination, e Event) ([]Action, bool) {
			if d.state != DestinationRefusing || e.Kind != JournalDone {
				return nil, false
			}
			return append(d.refusing(e), d.say(Refused)), true
		}),
	}
}

// endless mutants are safe, but leave the guest in doubt for ever.
func endless() []machine {
	return []machine{
		sourceMutant("COMMIT said once", func(s *Source, e Event) ([]Action, bool) {
			return nil, s.state == SourceReleased && (fired(e, Resend) || e.Kind == LinkBack)
		}),
		destinationMutant("COMMIT not answered twice", func(d *Destination, e Event) ([]Action, bool) {
			again := heard(e, Commit) && d.state != DestinationReady
			return nil, again || d.state == DestinationOwner && (fired(e, Resend) || e.Kind == LinkBack)
		}),
		destinationMutant("REFUSED written once", func(d *Destination, e Event) ([]Action, bool) {
			return nil, d.state == DestinationRefusing && fired(e, Retry)
		}),
	}
}

// TestMutants shows that the walk finds mistakes: first by what happens to the guest
// alone, not by how the machines go about it.
func TestMutants(t *testing.T) {
	anything := func(machine, world) error { return nil }
	rules := func(_ machine, w world) error { return w.careless() }
	ends := func(m machine, w world) error {
		_, err := settle(w, m)
		return err
	}
	catch(t, mutants(), anything)
	catch(t, careless(), rules)
	catch(t, endless(), ends)
}

func catch(t *testing.T, mutants []machine, check func(machine, world) error) {
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			n, err := walk(m, func(w world) error { return check(m, w) })
			if err == nil {
				t.Fatalf("not caught in %d worlds", n)
			}
			t.Logf("caught after %d worlds: %v", n, err)
		})
	}
}
