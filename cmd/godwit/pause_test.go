package main

import (
	"testing"

	"github.com/godwit-vmm/godwit/internal/api/client"
)

func TestPauseAndResume(t *testing.T) {
	ownGuests(t)
	a, b := startVMM(t, "a"), startVMM(t, "b")
	expect := func(want string) {
		t.Helper()
		if a.getState() != want || b.getState() != want {
			t.Errorf("a is %s, b is %s, want %s", a.getState(), b.getState(), want)
		}
	}
	if out, _, err := runCobra(t, newPause(), "a", "b", "a"); err != nil || out != "" {
		t.Errorf("pause: %q, %v", out, err)
	}
	expect(client.Paused)
	if out, _, err := runCobra(t, newResume(), "b", "a"); err != nil || out != "" {
		t.Errorf("resume: %q, %v", out, err)
	}
	expect(client.Running)

	// The others are paused all the same.
	b.setFault("the guest is not started")
	_, _, err := runCobra(t, newPause(), "nobody", "b", "a")
	const want = "guest b: the guest is not started\nguest nobody is not running: godwit ps lists those that are"
	if err == nil || err.Error() != want || a.getState() != client.Paused {
		t.Errorf("a is %s; got %v, want %s", a.getState(), err, want)
	}
	startProcess(t, "new", silent)
	_, _, err = runCobra(t, newResume(), "new")
	if want := "guest new: nobody answers on the control socket: it is just starting or ending; try again"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
