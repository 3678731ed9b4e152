package handover

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMayStart(t *testing.T) {
	for _, test := range []struct {
		name    string
		entries []Entry
		epoch   uint64
		err     error
	}{
		{"no record", nil, 1, nil},
		{"never away", []Entry{sourceEntry(StateOwner, 4, 4)}, 4, nil},
		{"let go", []Entry{sourceEntry(StateReleased, 1, 1)}, 0, ErrInDoubt},
		{"gone", []Entry{sourceEntry(StateGone, 1, 1)}, 0, ErrHandedOver},
		{"taken back", []Entry{sourceEntry(StateOwner, 1, 3)}, 3, nil},
		{"arrived", []Entry{destinationEntry(StateOwner, 1, false)}, 2, nil},
		{"another's that was refused", []Entry{destinationEntry(StateRefused, 7, false)}, 1, nil},
		{"gone and come back", []Entry{sourceEntry(StateGone, 1, 1), destinationEntry(StateOwner, 2, true)}, 3, nil},
		{"come and gone on", []Entry{destinationEntry(StateOwner, 1, true), sourceEntry(StateGone, 2, 2)}, 0, ErrHandedOver},
		{"come and let go", []Entry{destinationEntry(StateOwner, 1, true), sourceEntry(StateReleased, 2, 2)}, 0, ErrInDoubt},
		{"let go after an attempt", []Entry{sourceEntry(StateOwner, 1, 1), sourceEntry(StateReleased, 1, 1)}, 0, ErrInDoubt},
		{"both sides on this host", []Entry{sourceEntry(StateReleased, 5, 5), destinationEntry(StateOwner, 5, false)}, 6, nil},
		{"both sides, refused", []Entry{sourceEntry(StateReleased, 5, 5), destinationEntry(StateRefused, 5, false)}, 0, ErrInDoubt},
		{"gone, come back, gone", []Entry{sourceEntry(StateGone, 3, 3), sourceEntry(StateGone, 1, 1), destinationEntry(StateOwner, 2, true)}, 0, ErrHandedOver},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := openJournal(t)
			for _, e := range test.entries {
				put(t, j, "vm", e)
			}
			epoch, err := j.Epoch("vm")
			if epoch != test.epoch || !errors.Is(err, test.err) {
				t.Errorf("epoch %d, %v; want %d, %v", epoch, err, test.epoch, test.err)
			}
			if err != nil && (!strings.Contains(err.Error(), "192.0.2.7:4000") || !strings.Contains(err.Error(), "`godwit migration resolve vm")) {
				t.Errorf("the error does not say where the guest is, and what to do: %v", err)
			}
			if err := j.MayStart("other"); err != nil {
				t.Errorf("another guest: %v", err)
			}
		})
	}
}

// TestMayCome: a guest that left comes back in a later epoch, and another one of its name
// does not take its place.
func TestMayCome(t *testing.T) {
	for _, test := range []struct {
		name    string
		entries []Entry
		epoch   uint64
		err     error
	}{
		{"not known", nil, 1, nil},
		{"back", []Entry{sourceEntry(StateGone, 1, 1)}, 2, nil},
		{"back before it is known that it left", []Entry{sourceEntry(StateReleased, 1, 1)}, 2, nil},
		{"another of the name", []Entry{sourceEntry(StateGone, 5, 5)}, 1, ErrHandedOver},
		{"another of the name and age", []Entry{sourceEntry(StateGone, 1, 1)}, 1, ErrHandedOver},
		{"another, and the first is in doubt", []Entry{sourceEntry(StateReleased, 3, 3)}, 3, ErrInDoubt},
		{"after a refusal", []Entry{destinationEntry(StateRefused, 1, false)}, 1, nil},
		{"come, left and back", []Entry{destinationEntry(StateOwner, 1, true), sourceEntry(StateGone, 2, 2)}, 3, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := openJournal(t)
			for _, e := range test.entries {
				put(t, j, "vm", e)
			}
			if err := j.MayCome("vm", test.epoch); !errors.Is(err, test.err) || err != nil && !strings.Contains(err.Error(), "`godwit migration resolve vm") {
				t.Errorf("%v, want %v", err, test.err)
			}
		})
	}
}

func TestList(t *testing.T) {
	j := openJournal(t)
	s := put(t, j, "vm", sourceEntry(StateReleased, 1, 1))
	for _, file := range []string{
		"readme", "vm.json", "vm@0.source.json", ".vm@" + s.key.ID.String() + ".source.json.123",
		"vm@" + strings.ToUpper(NewID().String()) + ".source.json", "vm@" + NewID().String() + ".owner.json",
	} {
		if err := os.WriteFile(filepath.Join(j.dir, file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := j.List()
	if err != nil || len(all) != 1 || all[0].Key != s.key || all[0].Err != nil {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestUnsettled(t *testing.T) {
	j := openJournal(t)
	put(t, j, "a", sourceEntry(StateGone, 1, 1))
	put(t, j, "b", destinationEntry(StateOwner, 1, false)) // its source may be in doubt still
	put(t, j, "b", sourceEntry(StateReleased, 2, 2))
	put(t, j, "c", destinationEntry(StateRefused, 1, false))
	put(t, j, "c", sourceEntry(StateOwner, 9, 9))
	put(t, j, "d", sourceEntry(StateReleased, 1, 1)) // came back
	put(t, j, "d", destinationEntry(StateOwner, 2, true))
	got := make(map[string]bool)
	all, err := j.Unsettled()
	for _, r := range all {
		got[r.VM+" "+r.State.String()] = true
	}
	want := map[string]bool{"b OWNER": true, "b RELEASED": true, "c REFUSED": true}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

func TestPrune(t *testing.T) {
	j := openJournal(t)
	old := put(t, j, "vm", sourceEntry(StateGone, 1, 1))
	held := put(t, j, "vm", sourceEntry(StateOwner, 2, 2))
	defer acquire(t, j, held.key).Close()
	refused := put(t, j, "vm", destinationEntry(StateRefused, 9, false))
	put(t, j, "vm", destinationEntry(StateOwner, 2, false)) // not acknowledged
	last := put(t, j, "vm", sourceEntry(StateGone, 3, 3))
	put(t, j, "other", sourceEntry(StateGone, 1, 1))
	torn := filepath.Join(j.dir, "."+last.key.file()+".123")
	if err := os.WriteFile(torn, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := j.Prune("vm"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{old.path, refused.path, torn} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is there still", path)
		}
	}
	if all, err := j.List(); err != nil || len(all) != 4 {
		t.Errorf("left: %+v, %v", all, err)
	}
	if err := j.MayStart("vm"); !errors.Is(err, ErrHandedOver) {
		t.Errorf("%v", err)
	}
}

// TestPruneRefusals: what strangers can have written does not pile up, and what a process
// is about to say, or the only word of who has a guest, stays.
func TestPruneRefusals(t *testing.T) {
	j := openJournal(t)
	const many = 20
	for range many {
		put(t, j, "unknown", destinationEntry(StateRefused, 1, false))
	}
	last := put(t, j, "vm", destinationEntry(StateRefused, 1, false))
	held := put(t, j, "vm", destinationEntry(StateRefused, 1, false))
	defer acquire(t, j, held.key).Close()
	put(t, j, "vm", destinationEntry(StateOwner, 1, false))
	put(t, j, "vm", sourceEntry(StateReleased, 2, 2))
	if err := j.PruneRefusals(2); err != nil {
		t.Fatal(err)
	}
	kept, err := j.Of(last.key.ID)
	if all, e := j.List(); e != nil || err != nil || len(all) != 4 || len(kept) != 1 {
		t.Errorf("left: %+v, %v; the newest: %v, %v", all, e, kept, err)
	}
	if err := j.PruneRefusals(0); err != nil {
		t.Fatal(err)
	}
	if all, err := j.List(); err != nil || len(all) != 3 {
		t.Errorf("left: %+v, %v", all, err)
	}
	if err := j.MayStart("vm"); !errors.Is(err, ErrInDoubt) {
		t.Errorf("%v", err)
	}
}

// TestManyRecords: those of other guests keep none from being started.
func TestManyRecords(t *testing.T) {
	j := openJournal(t)
	put(t, j, "vm", sourceEntry(StateGone, 1, 1))
	for range maxRecords {
		k := Key{VM: "other", Role: RoleDestination, ID: NewID()}
		if err := os.WriteFile(filepath.Join(j.dir, k.file()), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.MayStart("vm"); !errors.Is(err, ErrHandedOver) {
		t.Errorf("a guest that moved away: %v", err)
	}
	if err := j.MayStart("third"); err != nil {
		t.Errorf("a guest that is not known: %v", err)
	}
	if _, err := j.List(); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("all together: %v", err)
	}
}
