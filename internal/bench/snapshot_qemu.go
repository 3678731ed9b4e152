package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// pausableQEMU is a command line for a microvm whose guest can be saved.
func pausableQEMU(mib int, args ...string) ([]string, error) {
	const lean = "microvm,kernel-irqchip=split,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off,auto-kernel-cmdline=off,isa-serial=on"
	return qemu(append([]string{"-M", lean, "-m", strconv.Itoa(mib)}, args...)...)
}

// qmp is a QEMU that runs, with its monitor (QEMU Machine Protocol) on its standard
// input and output.
type qmp struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *json.Decoder
	stderr  strings.Builder
}

// startQMP starts a QEMU, which is killed when ctx ends, and waits until its guest
// says that it is ready.
func startQMP(ctx context.Context, e *Env, program string, mib int) (*qmp, error) {
	said := filepath.Join(e.Dir, "qemu-serial")
	argv, err := pausableQEMU(mib, "-qmp", "stdio", "-serial", "file:"+said, "-kernel", program)
	if err != nil {
		return nil, err
	}
	q, err := launchQMP(ctx, argv)
	if err != nil {
		return nil, err
	}
	// The default is for networks: 128 MiB/s.
	err = q.do("migrate-set-parameters", map[string]any{"max-bandwidth": 64 << 30}, nil)
	if err == nil {
		err = poll(ctx, readyLimit, func() (bool, error) {
			info, err := os.Stat(said)
			return err == nil && info.Size() > 0, nil
		})
	}
	if err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

// launchQMP starts a QEMU, which is killed when ctx ends, and waits until its monitor
// answers.
func launchQMP(ctx context.Context, argv []string) (q *qmp, err error) {
	q = &qmp{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...)}
	q.cmd.Stderr = &q.stderr
	if q.in, err = q.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := q.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	q.answers = json.NewDecoder(out)
	if err := q.cmd.Start(); err != nil {
		return nil, err
	}
	if err := q.do("qmp_capabilities", nil, nil); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

// poll asks until done, in steps of a millisecond.
func poll(ctx context.Context, limit time.Duration, done func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for {
		ok, err := done()
		switch {
		case err != nil || ok:
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("not done within %v", limit)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// do carries out a command. Events that come meanwhile are dropped.
func (q *qmp) do(command string, arguments map[string]any, answer any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(q.in).Encode(request); err != nil {
		return fmt.Errorf("QEMU %s: %w: %s", command, err, tail(q.stderr.String()))
	}
	for {
		var a struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := q.answers.Decode(&a); err != nil {
			return fmt.Errorf("QEMU %s: %w: %s", command, err, tail(q.stderr.String()))
		}
		switch {
		case a.Error != nil:
			return fmt.Errorf("QEMU %s: %s", command, a.Error.Desc)
		case a.Return != nil && answer != nil:
			return json.Unmarshal(a.Return, answer)
		case a.Return != nil:
			return nil
		}
	}
}

// migration is what QEMU says of one.
type migration struct {
	Status    string
	ErrorDesc string  `json:"error-desc"`
	Downtime  float64 // ms
	TotalTime float64 `json:"total-time"` // ms
	SetupTime float64 `json:"setup-time"` // ms, of TotalTime
	RAM       struct{ Transferred float64 }
}

// migrate saves the running guest to a file. The guest is stopped then.
func (q *qmp) migrate(ctx context.Context, file string) (migration, error) {
	return q.migrateTo(ctx, "exec:cat >"+file)
}

// migrateTo sends the guest to where uri says. It is stopped then.
func (q *qmp) migrateTo(ctx context.Context, uri string) (m migration, err error) {
	if err := q.do("migrate", map[string]any{"uri": uri}, nil); err != nil {
		return m, err
	}
	return m, poll(ctx, processLimit, func() (bool, error) {
		if err := q.do("query-migrate", nil, &m); err != nil {
			return false, err
		}
		if m.Status == "failed" {
			return false, fmt.Errorf("QEMU: the migration to %s failed: %s", uri, m.ErrorDesc)
		}
		return m.Status == "completed", nil
	})
}

// close kills QEMU.
func (q *qmp) close() {
	_ = q.cmd.Process.Kill()
	_ = q.cmd.Wait() // it was killed
}

// saveInQEMU runs a program until it is ready, and saves the guest to a file.
func saveInQEMU(ctx context.Context, e *Env, program string, mib int, file string) error {
	e.progress("a file of QEMU's with %d MiB", mib)
	q, err := startQMP(ctx, e, program, mib)
	if err != nil {
		return err
	}
	defer q.close()
	_, err = q.migrate(ctx, file)
	return err
}
