package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	const script = `
godwit ps
for pid in $(godwit ps --json | grep -o '"pid": *[0-9]*' | grep -o '[0-9]*$'); do
	echo "-- $pid"; grep -E 'State|ctxt' /proc/$pid/task/*/status
	kill -QUIT $pid
	for i in $(seq 50); do test -d /proc/$pid || break; sleep 0.1; done
done
cat /run/godwit/*/messages.log
dmesg | tail -n 20
free
true`
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	defer cancel()
	var out bytes.Buffer
	if _, err := e.host.Run(ctx, lab.Cmd{Args: []string{"sh", "-c", script}, Stdout: &out, Stderr: &out}); err != nil {
		fmt.Fprintf(&out, "autopsy: %v\n", err)
	}
	return out.String()
}
