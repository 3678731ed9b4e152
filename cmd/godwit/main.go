// Command godwit boots virtual machines on Linux KVM.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/godwit-vmm/godwit/internal/version"
	"github.com/spf13/cobra"
)

// exitFailed is the exit status when godwit failed or the guest crashed, as
// against a guest command that failed, whose own status is passed on. It is
// what container tools and env(1) use.
const exitFailed = 125

// exitStatus is an error that ends the program with a status and no message.
type exitStatus int

// Error is for the case that the status is printed after all.
func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func main() {
	growStack()
	err := newRoot(os.Args[1:]...).Execute()
	if err == nil {
		return
	}
	var status exitStatus
	if errors.As(err, &status) {
		os.Exit(int(status))
	}
	fmt.Fprintln(os.Stderr, "godwit:", err)
	os.Exit(exitFailed)
}

// growStack makes room on the stack for what a start takes of it. Growing it little by
// little costs 0.15 ms: each time all frames are looked up and moved.
//
//go:noinline
func growStack() {
	var room [24 << 10]byte
	runtime.KeepAlive(&room)
}

// commands are all commands by their names.
var commands = []struct {
	name string
	make func() *cobra.Command
}{
	{"boot", newBoot}, {"ps", newPS}, {"exec", newExec}, {"cp", newCp},
	{"console", newAttach}, {"events", newEvents}, {"wait", newWait},
	{"pause", newPause}, {"resume", newResume}, {"stop", newStop}, {"kill", newKill}, {"rm", newRm},
	{"balloon", newBalloon}, {"snapshot", newSnapshot}, {"restore", newRestore}, {"clone", newClone},
	{"migrate", newMigrate}, {"receive", newReceive}, {"migration", newMigration},
	{"vmm", newVMM}, {"doctor", newDoctor}, {"guest", newGuest}, {"bench", newBench}, {"version", newVersion},
}

// newRoot makes the command line. If args begin with the name of a command, it has only
// that one: making all takes a noticeable part of a guest's start.
func newRoot(args ...string) *cobra.Command {
	root := &cobra.Command{
		Use:   "godwit",
		Short: "A minimal, fast, safe hypervisor on Linux KVM",
		Long: `godwit runs virtual machines on Linux KVM.

Exit status: that of the guest's command, 0 after a power-off, 125 when godwit
itself failed or the guest crashed.`,
		Example: `  godwit doctor                             what this host can do
  godwit boot                               a shell in a guest
  godwit boot --cpus 2 -- uname -a          run a command in a guest
  godwit boot --name web --wait             a guest in the background
  godwit exec web -- uname -a               run a command there
  godwit cp site/. web:/srv/www             copy files there
  godwit boot --kernel vmlinuz --initrd initrd.img --cmdline 'root=/dev/vda'`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version.String(),
	}
	root.SetVersionTemplate("godwit {{.Version}}\n")
	for _, c := range commands {
		if len(args) > 0 && args[0] == c.name {
			root.AddCommand(c.make())
			return root
		}
	}
	for _, c := range commands {
		root.AddCommand(c.make())
	}
	return root
}
