package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
)

// rssLimit is how much godwit may keep resident (issue 2, acceptance 5).
const rssLimit = 12.0 // MiB

// spinning is what the guest says before it spins.
const spinning = "spinning"

// runRSS measures VMMs while their guest runs.
func runRSS(ctx context.Context, e *Env) (*Result, error) {
	program, err := writeProgram(e, "spin.elf", func(stop micro.Stop) ([]byte, error) {
		return micro.Hello(spinning+"\n", stop)
	}, nil)
	if err != nil {
		return nil, err
	}
	r := &Result{Metrics: []*Metric{
		{Name: "resident", Unit: "MiB", goals: []goal{atMost(godwitName, rssLimit)}},
		{Name: "of it private", Unit: "MiB"},
	}}
	return r, r.compete(ctx, e, e.rounds(5, 2),
		contestant{name: godwitName, run: func(ctx context.Context) ([]float64, error) {
			return residentWhileSpinning(ctx, e.Godwit, "boot", "--allow-software-kvm", "--memory", "128M", "--kernel", program)
		}},
		contestant{name: microvmName, peer: true, run: func(ctx context.Context) ([]float64, error) {
			argv, err := qemu("-M", leanMicroVM+",memory-backend=ram", "-serial", "stdio", "-kernel", program,
				"-m", "128", "-object", "memory-backend-memfd,id=ram,size=128M")
			if err != nil {
				return nil, err
			}
			return residentWhileSpinning(ctx, argv...)
		}},
	)
}

// residentWhileSpinning starts a VMM, waits until its guest says that it spins,
// and measures.
func residentWhileSpinning(ctx context.Context, argv ...string) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, processLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	values, err := whenSpinning(ctx, bufio.NewScanner(stdout), cmd.Process)
	cancel() // kills the VMM
	waitErr := cmd.Wait()
	if errors.Is(err, errNotSpinning) {
		err = fmt.Errorf("%w (%v): %s", err, waitErr, tail(stderr.String()))
	}
	return values, err
}

var errNotSpinning = errors.New("ended before its guest said anything")

// settle is how long a VMM may take after its guest has started to reach the
// memory that it keeps.
const settle = 200 * time.Millisecond

func whenSpinning(ctx context.Context, out *bufio.Scanner, p *os.Process) ([]float64, error) {
	for !strings.Contains(out.Text(), spinning) {
		if !out.Scan() {
			return nil, errNotSpinning
		}
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m, err := residentMemory(p.Pid, func(name string) bool { return strings.HasPrefix(name, "/memfd:") })
	if err == nil && m.guest == 0 {
		err = errors.New("no guest memory found among the mappings (memfd)")
	}
	return []float64{m.rss / 1024, m.private / 1024}, err
}
