// What is OHIF told of this server, beyond the app-config.js of MONAI Label's package, which comes before?
//
// The panel "MONAI Label" asks the server that the page came from, whatever its port. Beside it is OHIF's own panel to
// correct a segmentation and to store it in the archive, with the organs' codes: the package's mode brings the brushes,
// but neither that panel nor its buttons.
(() => {
  const organs = {}; // label: the tags of its DICOM segment; the server fills them in
  const strategy = 'disagreement'; // the one to begin with, see disagreement.py
  const correctionPanel = '@ohif/extension-cornerstone.panelModule.panelSegmentationWithTools';
  const brush = (id, icon, round, ball) => ({
    id,
    icon,
    label: id,
    evaluate: {
      name: 'evaluate.cornerstone.segmentation',
      toolNames: [round, ball],
      disabledText: 'Run the model, or add a segmentation, first.',
    },
    options: [
      {
        id: `${id}-radius`,
        name: 'Radius (mm)',
        type: 'range',
        min: 0.5,
        max: 99.5,
        step: 0.5,
        value: 10,
        commands: { commandName: 'setBrushSize', commandOptions: { toolNames: [round, ball] } },
      },
      {
        id: `${id}-shape`,
        name: 'Shape',
        type: 'radio',
        value: round,
        values: [
          { value: round, label: 'Circle' },
          { value: ball, label: 'Sphere' },
        ],
        commands: 'setToolActiveToolbar',
      },
    ],
  });
  const scissors = ['CircleScissor', 'SphereScissor', 'RectangleScissor'];
  const buttons = [
    {
      id: 'BrushTools',
      uiType: 'ohif.buttonGroup',
      props: {
        groupId: 'BrushTools',
        items: [
          brush('Brush', 'icon-tool-brush', 'CircularBrush', 'SphereBrush'),
          brush('Eraser', 'icon-tool-eraser', 'CircularEraser', 'SphereEraser'),
        ],
      },
    },
    {
      id: 'Shapes',
      uiType: 'ohif.radioGroup',
      props: {
        label: 'Shapes',
        icon: 'icon-tool-shape',
        evaluate: { name: 'evaluate.cornerstone.segmentation', toolNames: scissors },
        options: [
          {
            id: 'shape-mode',
            name: 'Shape',
            type: 'radio',
            value: scissors[0],
            values: scissors.map(value => ({ value, label: value.replace('Scissor', '') })),
            commands: 'setToolActiveToolbar',
          },
        ],
      },
    },
  ];
  // Storing takes it for granted that slices are in order from the far end of the slices' normal to the near one. Those
  // of a segmentation may lie the other way, and would be stored upside down: so they are put in order before.
  const inOrder = (id, generate) => {
    const labelmap = cornerstoneTools.segmentation.state.getSegmentation(id).representationData.Labelmap;
    const along = imageId => {
      const source = cornerstone.metaData.get('instance', cornerstone.cache.getImage(imageId).referencedImageId);
      const [a, b, c, d, e, f] = source.ImageOrientationPatient;
      const [x, y, z] = source.ImagePositionPatient;
      return (b * f - c * e) * x + (c * d - a * f) * y + (a * e - b * d) * z;
    };
    const shown = labelmap.imageIds;
    try {
      labelmap.imageIds = [...shown].sort((one, other) => along(other) - along(one));
      return generate();
    } finally {
      labelmap.imageIds = shown;
    }
  };
  // OHIF's button to store hands over no archive, says nothing of success, and calls every organ "Tissue".
  const storing = ({ commandsManager, extensionManager, servicesManager }) => async ({ segmentationId }) => {
    const archive = extensionManager.getActiveDataSource()[0];
    const run = (command, given) => commandsManager.runCommand(command, { segmentationId, ...given }, 'SEGMENTATION');
    const dicom = dataset => {
      const options = { SeriesDescription: dataset.SeriesDescription };
      Object.assign(dataset, inOrder(segmentationId, () => run('generateSegmentation', { options })).dataset);
      for (const segment of dataset.SegmentSequence) {
        Object.assign(segment, organs[segment.SegmentLabel]);
      }
      return archive.store.dicom(dataset);
    };
    const { uiNotificationService } = servicesManager.services;
    const say = (type, message) => uiNotificationService.show({ title: 'Segmentation', type, message });
    try {
      const dataSource = { ...archive, store: { ...archive.store, dicom } };
      if (await run('storeSegmentation', { dataSource })) {
        say('success', 'Stored in the archive');
      }
    } catch (error) {
      say('error', `Not stored: ${error.message ?? error}`);
    }
  };
  let managers;
  const correction = {
    id: 'cyclic-committee.correction',
    preRegistration: given => {
      managers = given;
    },
    onModeEnter: () => {
      const { commandsManager, servicesManager } = managers;
      const { panelService, toolbarService } = servicesManager.services;
      const panels = panelService.getPanels('right').map(panel => panel.id);
      if (panels.some(id => id.includes('monai-label')) && !panels.includes(correctionPanel)) {
        toolbarService.addButtons(buttons);
        panelService.addPanel('right', correctionPanel);
      }
      commandsManager.createContext('CORRECTION'); // the last one: its commands go first
      commandsManager.registerCommand('CORRECTION', 'storeSegmentation', { commandFn: storing(managers) });
    },
  };

  // The panel lists the server's strategies, but asks by "random" whichever is chosen: it is told what was chosen here.
  const heard = new WeakSet();
  const tell = choice => {
    const key = Object.keys(choice).find(name => name.startsWith('__reactFiber$'));
    let part = choice[key];
    while (part && !part.stateNode?.state?.strategy) {
      part = part.return;
    }
    part?.stateNode.setState({ strategy: choice.value });
  };
  new MutationObserver(() => {
    const choice = document.querySelector(`option[name='${strategy}']`)?.parentElement;
    if (choice && !heard.has(choice)) {
      heard.add(choice);
      choice.value = strategy;
      choice.addEventListener('change', () => tell(choice));
      tell(choice);
    }
  }).observe(document, { childList: true, subtree: true });

  document.cookie = 'MONAILABEL_SERVER_URL=' + escape(window.location.origin + '/');
  window.config.extensions.push(correction);
})();
