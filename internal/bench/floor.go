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

// floorProgram is the C program that shows what KVM itself costs.
type floorProgram struct {
	path string
	dir  string
}

// buildFloor compiles the program in the case's folder. Linked statically it
// starts faster, so a floor that is not is the second choice.
func buildFloor(ctx context.Context, e *Env) (*floorProgram, error) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		return nil, Skip("the floor is a C program and there is no C compiler (cc): install gcc and libc6-dev")
	}
	e.progress("compiling the floor")
	source := filepath.Join(e.Dir, "floor.c")
	if err := os.WriteFile(source, floorSource, 0o600); err != nil {
		return nil, err
	}
	f := &floorProgram{path: filepath.Join(e.Dir, "floor"), dir: e.Dir}
	var out []byte
	for _, link := range []string{"-static", "-no-pie"} {
		out, err = exec.CommandContext(ctx, cc, "-O2", "-Wall", link, "-o", f.path, source).CombinedOutput()
		if err == nil {
			return f, nil
		}
	}
	return nil, fmt.Errorf("compile the C floor: %w: %s", err, tail(string(out)))
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
