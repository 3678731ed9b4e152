// Command godwit-lab runs emulated hosts, in which godwit has a KVM with
// hardware virtualization on any machine.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/godwit-vmm/godwit/internal/version"
)

// exitFailed is the exit status when godwit-lab failed, as against a command
// in a host, whose own status is passed on.
const exitFailed = 125

// exitStatus is an error that ends the program with a status and no message.
type exitStatus int

// Error is for the case that the status is printed after all.
func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func main() {
	err := newRoot().Execute()
	if err == nil {
		return
	}
	var status exitStatus
	if errors.As(err, &status) {
		os.Exit(int(status))
	}
	fmt.Fprintln(os.Stderr, "godwit-lab:", err)
	os.Exit(exitFailed)
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "godwit-lab",
		Short: "Emulated hosts with hardware virtualization",
		Long: `godwit-lab runs emulated hosts: QEMU emulates in software a machine with AMD's
virtualization extension, on which godwit runs unmodified guests wherever the
lab itself runs. It needs qemu-system-x86 and what "make guest" prepares.

Exit status: that of the command in the host, 125 when godwit-lab itself failed.`,
		Example: `  godwit-lab run -- boot -- uname -a        one command of godwit in a fresh host
  godwit-lab up --hosts 2                   two hosts on one link that stay
  godwit-lab exec h1 -- ping -c 1 h2
  godwit-lab cp bin/godwit h1:/usr/local/bin/godwit
  godwit-lab down`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version.String(),
	}
	root.SetVersionTemplate("godwit-lab {{.Version}}\n")
	root.AddCommand(newRun(), newAuto(), newUp(), newKeep(), newDown(), newList(), newExec(), newCp())
	return root
}
