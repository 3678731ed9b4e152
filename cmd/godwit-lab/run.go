package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/godwit-vmm/godwit/internal/lab"
	"github.com/godwit-vmm/godwit/kvm"
)

func newRun() *cobra.Command {
	var host hostFlags
	var quiet bool
	c := &cobra.Command{
		Use:   "run [flags] -- ARGS...",
		Short: "Run godwit with these arguments in a fresh host",
		Long: `Start an emulated host, run "godwit ARGS" in it, and end the host. Input,
output and exit status are those of godwit. The first SIGINT or SIGTERM goes to
godwit, the second ends the host.`,
		Example: `  godwit-lab run -- boot
  godwit-lab run -- boot --cpus 2 --memory 512M -- sh -c 'nproc; exit 3'
  godwit-lab run --cpus 4 --memory 8G -- boot --memory 5G -- free`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return run(&host, quiet, args) },
	}
	host.add(c.Flags())
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not say that a host is being started")
	c.Flags().SetInterspersed(false)
	return c
}

func newAuto() *cobra.Command {
	var host hostFlags
	c := &cobra.Command{
		Use:   "auto [flags] -- ARGS...",
		Short: "Run godwit on this machine if its KVM can, else in a fresh host",
		Long: `Run "godwit ARGS" on this machine's own KVM if that has hardware virtualization
below it, else in an emulated host as "godwit-lab run" does, and say which.`,
		Example: "  godwit-lab auto -- boot -- uname -a",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if reason := noHardware(); reason != "" {
				fmt.Fprintf(os.Stderr, "godwit-lab: %s: starting an emulated host\n", reason)
				return run(&host, true, args)
			}
			program, err := godwit()
			if err != nil {
				return err
			}
			fmt.Fprintln(os.Stderr, "godwit-lab: this machine has hardware virtualization: running on its own KVM")
			return syscall.Exec(program, append([]string{program}, args...), os.Environ())
		},
	}
	host.add(c.Flags())
	c.Flags().SetInterspersed(false)
	return c
}

// noHardware says why guests do not run on this machine's own KVM; it is empty
// if they do.
func noHardware() string {
	sys, err := kvm.Open("")
	if err != nil {
		return err.Error()
	}
	defer sys.Close()
	switch ns, err := kvm.ProbeRing0(sys); {
	case err != nil:
		return err.Error()
	case ns >= kvm.SoftwareNsPerInsn:
		return fmt.Sprintf("this machine's KVM is software (%.0f ns an instruction)", ns)
	}
	return ""
}

func run(flags *hostFlags, quiet bool, args []string) error {
	o, err := flags.options()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	begin := time.Now()
	if !quiet {
		fmt.Fprintln(os.Stderr, "godwit-lab: starting an emulated host")
	}
	host, err := lab.Start(ctx, o)
	stop()
	if err != nil {
		return err
	}
	defer host.Close()
	if !quiet {
		fmt.Fprintf(os.Stderr, "godwit-lab: the host is up after %.1f s\n", time.Since(begin).Seconds())
	}
	return attach(host.Client, append([]string{"godwit"}, args...))
}
