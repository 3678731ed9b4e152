package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/godwit-vmm/godwit/internal/lab"
)

// dumpTime is how long a process has to print its stacks.
const dumpTime = 10 * time.Second

// end ends a godwit that is overdue: it is asked for its stacks first.
func (p *emulatedProcess) end() {
	if !errors.Is(p.ctx.Err(), context.DeadlineExceeded) {
		_ = p.Kill()
		return
	}
	_ = p.Signal(syscall.SIGQUIT)
	time.AfterFunc(dumpTime, func() { _ = p.Kill() }) // one that has ended takes no harm
}

// autopsy ends all guests of the host after a godwit that was overdue, and gives what
// each of them was doing: the stacks of its goroutines, which go to its messages.
func (e *emulated) autopsy() string {
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	defer cancel()
	var out bytes.Buffer
	run := func(stdout io.Writer, script string) {
		if _, err := e.host.Run(ctx, lab.Cmd{Args: []string{"sh", "-c", script}, Stdout: stdout, Stderr: &out}); err != nil {
			fmt.Fprintf(&out, "%s: %v\n", script, err)
		}
	}
	var list bytes.Buffer
	run(&list, "godwit ps --json")
	out.Write(list.Bytes())
	var guests []struct {
		Name string
		PID  int
	}
	if err := json.Unmarshal(list.Bytes(), &guests); err != nil {
		fmt.Fprintf(&out, "godwit ps --json: %v\n", err)
	}
	for _, g := range guests {
		fmt.Fprintf(&out, "guest %s:\n", g.Name)
		run(&out, fmt.Sprintf(`cat /proc/%[1]d/task/*/stat; kill -3 %[1]d
			for i in $(seq 50); do test -d /proc/%[1]d || break; sleep 0.1; done
			cat /run/godwit/%[2]s/messages.log`, g.PID, g.Name))
	}
	run(&out, "dmesg | tail -n 20; free")
	return out.String()
}
