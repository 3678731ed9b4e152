package bench

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed floor/floor.c
var floorSource []byte

//go:embed floor/sender.c
var senderSource []byte

// floorProgram is the C program that shows what KVM itself costs.
type floorProgram struct {
	path string
	dir  string
}

// buildFloor compiles the program in the case's folder.
func buildFloor(ctx context.Context, e *Env) (*floorProgram, error) {
	path, err := compile(ctx, e, "floor", floorSource)
	return &floorProgram{path: path, dir: e.Dir}, err
}

// compile makes a program of C source in the case's folder. Linked statically it
// starts faster, so one that is not is the second choice.
func compile(ctx context.Context, e *Env, name string, text []byte) (path string, err error) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		return "", Skip("the %s is a C program and there is no C compiler (cc): install gcc and libc6-dev", name)
	}
	e.progress("compiling the " + name)
	path = filepath.Join(e.Dir, name)
	if err := os.WriteFile(path+".c", text, 0o600); err != nil {
		return "", err
	}
	var out []byte
	for _, link := range []string{"-static", "-no-pie"} {
		out, err = exec.CommandContext(ctx, cc, "-O2", "-Wall", link, "-o", path, path+".c").CombinedOutput()
		if err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("compile the C %s: %w: %s", name, err, tail(string(out)))
}

// guestTimes is what a run of the floor says about its guest.
type guestTimes struct {
	Exits uint64  `json:"exits"`
	TSC   uint64  `json:"tsc"`    // between the guest's two time stamps
	KHz   float64 `json:"khz"`    // of the guest's time stamp counter
	CPU   float64 `json:"cpu_us"` // processor time of the run loop
}

func (f *floorProgram) run(ctx context.Context, program string) (cost, guestTimes, error) {
	c, err := runProcess(ctx, f.dir, 0, f.path, program)
	if err != nil {
		return cost{}, guestTimes{}, err
	}
	var t guestTimes
	if err := json.Unmarshal([]byte(c.out), &t); err != nil {
		return cost{}, guestTimes{}, fmt.Errorf("output of the C floor: %w", err)
	}
	return c, t, nil
}
